"""Job files: all errors are reported at once, with their lines, and nothing is written."""

from pathlib import Path

import pytest

from headscope import analyses
from headscope.app.batch.job_file import read_job
from headscope.app.batch.yaml_errors import InvalidFile

BAD = """\
models:
  - headscope/bundeld
  - model: headscope/bundled
    atention: self
  - headscope/bundled
  - model: headscope/bundled
    name: twice
    dtype: float31
    device: tpu
tasks:
  - induktion
  - task: ioi
    options: {order: sideways, length: 3}
  - prompts: mine.txt
  - prompts: nowhere.jsonl
  - texts: []
  - name: nothing
analyses: [sinks, importance, sink, sinks]
options:
  sinks: {epsilon: much, epsilom: 0.3, seed: 4}
  entropy: {sharp: 0.1}
seeds: [0, -1, 0, no]
number: many
shard: 0
shard: 2
sharb: 2
"""

# Line and column, and words of the line that tells it.
TOLD = [
    ("2:5", "no 'headscope/bundeld'", "did you mean headscope/bundled?"),
    ("4:5", "'atention' is unknown", "did you mean attention?"),
    ("5:5", "'headscope/bundled' is in line 3"),
    ("8:12", "dtype: no 'float31'", "did you mean float32?"),
    ("9:13", "device: no 'tpu'"),
    ("11:5", "no 'induktion'", "did you mean induction?"),
    ("13:14", "task ioi: order"),
    ("13:32", "'length' is unknown"),
    ("15:14", "nowhere.jsonl cannot be read"),
    ("16:12", "texts: the list is empty"),
    ("17:5", "give one of `task: NAME`"),
    ("18:19", "importance needs answers, and mine holds plain prompts"),
    ("18:31", "no 'sink'", "did you mean sinks?"),
    ("18:37", "'sinks' is there twice"),
    ("20:20", "'much' is not of the type float"),
    ("20:26", "'epsilom' is unknown", "did you mean epsilon?"),
    ("20:10", "its seed is that of the cell"),
    ("21:12", "'entropy' is not among the analyses"),
    ("22:12", "-1 is too small"),
    ("22:16", "0 is there twice"),
    ("22:19", "'no' is not a whole number"),
    ("23:9", "'many' is not a whole number"),
    ("24:8", "shard: 0 is too small"),
    ("25:1", "'shard' is there twice, first in line 24"),
    ("26:1", "'sharb' is unknown", "did you mean shard?"),
]


def write(folder: Path, text: str) -> Path:
    (folder / "job.yaml").write_text(text)
    return folder / "job.yaml"


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        read_job(write(folder, text))
    return caught.value.lines


def test_every_error_is_reported_with_its_line_and_nothing_is_written(tmp_path, headscope):
    (tmp_path / "mine.txt").write_text("a text\n")
    file = write(tmp_path, BAD)
    before = sorted(tmp_path.iterdir())
    code, _, lines = headscope("batch", file, "--out", tmp_path / "out")
    assert code == 2
    for (place, *words), line in zip(sorted(TOLD, key=in_order), lines, strict=True):
        assert line.startswith(f"error: {file}:{place}: "), (place, line)
        for word in words:
            assert word in line
    assert sorted(tmp_path.iterdir()) == before


def in_order(told: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(map(int, told[0].split(":")))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "models: [headscope/bundled]\ntasks: [ioi]\nanalyses: [sinks]\n"
            "options: {sinks: {epsilon: 7}}\n",
            "4:28: sinks: epsilon: 7.0 is outside 0 … 1",
        ),
        ("a: &a [*a]\n", "1:1: a value holds itself"),
        ("models: [a\ntasks: [b]\n", "2:6: not YAML"),
        ("", "1:1: job: give names with values"),
        ("- sinks\n", "1:1: job: give names with values"),
        ("title: x\n", "1:1: models: missing"),
        (
            "models: headscope/bundled\ntasks: [ioi]\nanalyses: [sinks]\n",
            "1:9: models: give a list",
        ),
        ("models: [12]\ntasks: [ioi]\nanalyses: [sinks]\n", "1:10: model: '12' is not a text"),
        ("models: [!!python/name:os.system x]\ntasks: [ioi]\nanalyses: [sinks]\n", "1:10: "),
    ],
)
def test_one_error_is_reported_with_its_line(text, line, tmp_path):
    assert any(f"job.yaml:{line}" in fault for fault in faults(tmp_path, text))


def test_a_model_of_the_hub_out_of_reach(tmp_path):
    lines = faults(tmp_path, "models: [gpt2]\ntasks: [ioi]\nanalyses: [sinks]\n")
    assert len(lines) == 1
    assert "1:10: model: 'gpt2' is no folder and not in the local cache" in lines[0]


def test_checkpoints_are_looked_up(tmp_path):
    text = "tasks: [ioi]\nanalyses: [sinks]\nmodels:\n  - headscope/induction@step400\n"
    assert read_job(write(tmp_path, text)).models[0].name == "headscope/induction@step400"
    (line,) = faults(tmp_path, text + "  - headscope/induction@step401\n")
    assert "5:5: model: headscope/induction has no checkpoint 'step401'" in line


def test_a_job_is_read_with_its_defaults(tmp_path, bundled):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("one\ntwo\n")
    job = read_job(
        write(
            tmp_path,
            "models:\n  - headscope/bundled\n  - {model: small, name: tiny, device: cpu}\n"
            "tasks:\n  - ioi\n  - {task: recall, number: 3, name: facts, options: {pairs: 4}}\n"
            "  - prompts: mine.txt\n  - {texts: [a b, c], name: own}\n"
            "analyses: all\noptions: {sinks: {epsilon: 1}}\nnumber: 5\n",
        )
    )
    assert [model.name for model in job.models] == ["headscope/bundled", "tiny"]
    assert job.models[1].model == str(tmp_path / "small"), "named from where the job file lies"
    assert [(task.label, task.count) for task in job.tasks] == [
        ("ioi", 5), ("facts", 3), ("mine", 2), ("own", 2),
    ]  # fmt: skip
    assert job.options == {"sinks": {"epsilon": 1.0}}
    assert (job.title, job.seeds, job.shard, job.threads) == ("job", (0,), 0, 1)
    assert len(job.groups) == 2 * 4
    answered, plain = job.groups[0], job.groups[2]
    assert set(answered.analyses) == set(analyses.names())
    assert set(answered.analyses) - set(plain.analyses) >= {"importance", "head_types"}
    assert "sinks" in plain.analyses
    assert str(tmp_path) not in str(job.identity()), "results do not depend on the place"


def test_tasks_have_the_register_of_the_job_or_their_own(tmp_path):
    tail = "models: [headscope/bundled-python]\nanalyses: [sinks]\n"
    text = "tasks: [ioi, {task: story, register: natural}]\n" + tail
    usual, own = read_job(write(tmp_path, text)).tasks
    assert (usual.wording, own.wording) == (None, "natural")
    assert "register" not in usual.describe(), "cells of earlier jobs keep their names"
    job = read_job(write(tmp_path, text + "register: plain\n"))
    model = job.models[0].load()
    assert [task.draw(model, 0).register for task in job.tasks] == ["plain", "natural"]
    assert [task.describe()["register"] for task in job.tasks] == ["plain", "natural"]
    assert usual.draw(model, 0).register == "natural", "as the tokenizer has"
    (line,) = faults(tmp_path, text + "register: planar\n")
    assert "4:11: register: no 'planar'; did you mean plain?" in line
    (line,) = faults(tmp_path, "tasks: [{texts: [a], register: plain}]\n" + tail)
    assert "register: only of a built-in task" in line
    (line,) = faults(tmp_path, text + "registre: plain\n")
    assert "did you mean register?" in line


def test_attention_of_an_encoder_and_decoder_needs_pairs(tmp_path, paired_folder):
    (tmp_path / "pairs.jsonl").write_text('{"source": "w1 w2", "target": "w3"}\n')
    lines = faults(
        tmp_path,
        f"models:\n  - {{model: '{paired_folder}', attention: cross, name: a}}\n"
        f"  - {{model: '{paired_folder}', name: b}}\n"
        "tasks:\n  - ioi\n  - prompts: pairs.jsonl\nanalyses:\n  - sinks\n  - importance\n",
    )
    output = "\n".join(lines)
    assert "5:5: task: ioi holds single texts, and the cross attention of a reads pairs" in output
    assert "6:5: task: pairs holds pairs, and b reads single texts" in output
    assert "9:5: analyses: importance needs answers, and pairs holds plain prompts" in output
