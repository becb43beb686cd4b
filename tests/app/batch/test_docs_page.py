"""The example of docs/batch.md runs, and prints what the page shows."""

import re
from pathlib import Path

from typer.testing import CliRunner

from headscope.app.batch import schema
from headscope.app.cli import app
from headscope.app.exports import long_table

PAGE = (Path(__file__).parents[3] / "docs" / "batch.md").read_text()


def block(language: str) -> str:
    (result,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(result)


def test_the_example_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(block("yaml"))
    commands = re.findall(r"^headscope (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    for command in commands[:2]:
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
    capsys.readouterr()
    exec(compile(block("python"), "docs/batch.md", "exec"), {})
    assert capsys.readouterr().out == block("text")


def test_every_field_and_column_is_on_the_page():
    kinds = (schema.JobFields, schema.ModelSpec, schema.TaskSpec)
    fields = {each.alias or name for kind in kinds for name, each in kind.model_fields.items()}
    assert "register" in fields
    for name in fields - {"model", "task"}:
        assert f"`{name}`" in PAGE or f"{name}: " in PAGE, name
    for name in (*long_table.schema().names, "model", "task", "analysis", "seed"):
        assert f"`{name}`" in PAGE, name
