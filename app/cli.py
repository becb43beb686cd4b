"""The command line: capture heads, analyse them, report them, browse them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from headscope.app.batch.command import batch
from headscope.app.bench_command import bench
from headscope.app.compare_command import compare
from headscope.app.progress import bar
from headscope.app.series import timeline
from headscope.kernels.errors import HeadscopeError, InvalidInput

if TYPE_CHECKING:
    from headscope.probes.run import Run

app = typer.Typer(
    name="headscope",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See what every attention head of a model does.",
    rich_markup_mode=None,
)
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
out = Console()
err = Console(stderr=True)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="headscope/bundled, headscope/bundled-python, headscope/induction@step400, a folder "
        "with a saved model, a hub name",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"headscope {version('headscope')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="folder of the run")] = Path("runs/demo"),
    number: Annotated[int, typer.Option("--number", help="prompts to capture")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="seed of the prompts")] = 0,
    every: Annotated[bool, typer.Option("--all", help="run every analysis, some minutes")] = False,
) -> None:
    """Run the main job on the bundled model: capture, the analyses of its story, report."""
    from headscope import analyses
    from headscope.app.job import STORY, analyze_run, capture_run

    with bar(err) as progress:
        run = capture_run(
            folder,
            "headscope/bundled",
            task="story",
            number=number,
            seed=seed,
            overwrite=True,
            progress=progress,
        )
        outcome = analyze_run(run, analyses.names() if every else STORY, progress=progress)
    _tell(outcome)
    _report(run)
    out.print(f"open the dashboard: headscope app {run.path}", soft_wrap=True, highlight=False)


@app.command()
def models() -> None:
    """List the models that need no download, and say how to name others."""
    from headscope.probes.bundled import BUNDLED, folder

    meanings = {
        "headscope/bundled": "a Llama of generated text, for all tasks",
        "headscope/bundled-python": "a GPT-2 of the Python library's source, takes any text",
        "headscope/induction": "a two-layer Llama, @step400 a checkpoint of it",
    }
    for name, meaning in (
        *((name, f"{meanings[name]} ({folder(name)})") for name in BUNDLED),
        ("PATH", "a folder written by save_pretrained (config.json, model.safetensors)"),
        ("ORG/NAME", "any model of the Hugging Face hub that follows its attention interface"),
    ):
        out.print(f"{name:24} {meaning}", soft_wrap=True, highlight=False)


@app.command("analyses")
def list_analyses(
    name: Annotated[str | None, typer.Argument(help="show one analysis in full")] = None,
) -> None:
    """List the analyses, or show the definition and the options of one."""
    from headscope import analyses

    if name is None:
        width = max(len(each) for each in analyses.names())
        for each in analyses.names():
            out.print(f"{each:{width}}  {analyses.summary(each)}", markup=False, soft_wrap=True)
        return
    import inspect

    module = analyses.load(name)
    out.print(inspect.cleandoc(module.__doc__ or ""), markup=False)
    out.print("\nOptions (headscope analyze RUN --set NAME.OPTION=VALUE):")
    for option, (default, text) in analyses.options(name).items():
        out.print(f"  {name}.{option}={default}  {text}", markup=False, soft_wrap=True)


@app.command("statistics")
def list_statistics() -> None:
    """List the statistics of a capture: formula, units, range, source."""
    from headscope.kernels import statistics

    for name in statistics.names():
        one = statistics.load(name)
        low, high = ("" if bound is None else f"{bound:g}" for bound in (one.low, one.high))
        bounds = f", {low or '-∞'} to {high or '∞'}" if low or high else ""
        out.print(f"{name}  ({', '.join(one.dims)}; {one.units or 'no units'}{bounds})", **PLAIN)
        out.print(f"    {one.title}", **PLAIN)
        out.print(f"    {one.formula}    [{one.source}]", **PLAIN)


@app.command()
def texts(
    file: Annotated[Path, typer.Option("--out", help="JSONL file to write, replaced if there")],
    number: Annotated[int, typer.Option("--number", help="library files")] = 8,
    tokens: Annotated[
        int, typer.Option("--tokens", help="tokens of headscope/bundled-python")
    ] = 512,
) -> None:
    """Write prompts of real text: openings of Python library files, for capture --prompts."""
    from headscope.app.texts import write_texts

    write_texts(file, number, tokens)
    out.print(f"{number} texts in {file}", soft_wrap=True, highlight=False)


@app.command()
def capture(
    model: Source,
    folder: Annotated[Path, typer.Option("--out", help="folder of the new run")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="text file (a prompt, or the path of an image, a line) or JSONL"
        ),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="name of a built-in task")] = None,
    number: Annotated[int, typer.Option("--number", help="prompts drawn from the task")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="seed of the task")] = 0,
    attention: Annotated[
        str,
        typer.Option("--attention", help="encoder, decoder or cross of an encoder–decoder model"),
    ] = "self",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the run that the folder holds")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what it would need, and stop")
    ] = False,
) -> None:
    """Capture what every head does on a set of prompts into a run folder."""
    from headscope.app.job import capture_run, plan_run

    options: dict[str, Any] = {
        "task": task,
        "prompts": prompts,
        "number": number,
        "seed": seed,
        "attention": attention,
        "overwrite": overwrite,
    }
    if dry_run:
        out.print(str(plan_run(folder, model, **options)), **PLAIN)
        return
    with bar(err) as progress:
        run = capture_run(folder, model, **options, progress=progress)
    out.print(f"captured into {run.path}; next: headscope analyze {run.path}", soft_wrap=True)


@app.command()
def analyze(
    run: RunFolder,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="analyses; default: all missing")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.OPTION=VALUE", help="an option of an analysis"),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="task, or JSONL file, instead of the analyses' own")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--number", help="prompts drawn from the analyses' tasks")
    ] = None,
) -> None:
    """Run analyses on a captured run and keep their results in it."""
    from headscope import analyses
    from headscope.app.job import analyze_run, done, open_run, parse_settings

    options = parse_settings(settings or [])
    opened = open_run(run)
    there = done(opened)
    wanted = names or [name for name in analyses.names() if name not in there or name in options]
    with bar(err) as progress:
        outcome = analyze_run(
            opened, wanted, task=task, number=number, options=options, progress=progress
        )
    _tell(outcome)
    asked = {*(names or ()), *options}
    if any(isinstance(outcome[name], HeadscopeError) for name in asked):
        raise typer.Exit(2)
    out.print(f"next: headscope report {run}", soft_wrap=True, highlight=False)


@app.command()
def report(run: RunFolder) -> None:
    """Write report.html, heads.parquet, heads.csv and report.json of a run."""
    from headscope.app.job import open_run

    _report(open_run(run))


app.command()(timeline)
app.command()(compare)
app.command()(bench)
app.command()(batch)


@app.command("app")
def dashboard(
    run: RunFolder,
    port: Annotated[int, typer.Option("--port", help="port on this machine")] = 8501,
) -> None:
    """Open the dashboard on a run, on this machine only."""
    import subprocess

    from headscope.app.launch import command
    from headscope.app.series import served

    arguments = command(served(run), port)
    raise typer.Exit(subprocess.run(arguments, check=False).returncode)


def _report(run: Run) -> None:
    from headscope.app.export import findings_table
    from headscope.app.report import write

    results = run.results()
    if not results:
        raise InvalidInput(f"run: {run.path} has no results; headscope analyze {run.path}")
    page = write(run)
    out.print(findings_table(results))
    out.print(
        f"report: {page} (and heads.parquet, heads.csv, report.json beside it)",
        soft_wrap=True,
        highlight=False,
    )


def _tell(outcome: Mapping[str, object]) -> None:
    for name, result in outcome.items():
        if isinstance(result, HeadscopeError):
            err.print(f"not run: {name}: {result}", markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a refusal is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except HeadscopeError as refusal:
        err.print(f"error: {refusal}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("cancelled; what was finished is kept, run the command again to go on")
        sys.exit(130)
