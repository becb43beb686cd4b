"""``headscope capture``: a model on prompts, into a run folder; ``texts``: prompts for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.app.cli.console import Register, err, print_text
from headscope.app.cli.progress import bar

if TYPE_CHECKING:
    from headscope.probes.storage.run_folder import Run


def capture(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="headscope/bundled, headscope/smollm2, headscope/induction@step400, a folder with "
            "a saved model, a GGUF file, a hub name",
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", help="folder of the new run")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="file of prompts: text (one a line), JSONL, JSON, CSV or TSV"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="name of a built-in task")] = None,
    number: Annotated[int, typer.Option(help="prompts drawn from the task")] = 32,
    seed: Annotated[int, typer.Option(help="seed of the task")] = 0,
    register: Register = None,
    attention: Annotated[
        str, typer.Option(help="encoder, decoder or cross of an encoder–decoder model")
    ] = "self",
    tokenizer: Annotated[str | None, typer.Option(help="name or folder of a tokenizer")] = None,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="begin texts with BOS; default: as the tokenizer does"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the run that the folder holds")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what it would need, and stop")
    ] = False,
) -> None:
    """Capture what every head does on a set of prompts into a run folder."""
    from headscope.app.pipeline import capture_run, plan_run

    options: dict[str, Any] = {
        "task": task,
        "prompts": prompts,
        "number": number,
        "seed": seed,
        "register": register,
        "attention": attention,
        "tokenizer": tokenizer,
        "bos": bos,
        "overwrite": overwrite,
    }
    if dry_run:
        print_text(plan_run(folder, model, **options))
        return
    with bar(err) as progress:
        run = capture_run(folder, model, **options, progress=progress)
    print_text(f"captured {_prompts(run)} into {run.path}; next: headscope analyze {run.path}")


def _prompts(run: Run) -> str:
    """Return how many prompts a run has, and how its task is worded."""
    count, task = run.manifest["n_prompts"], run.manifest["task"]
    text = f"{count} prompt{'s' * (count != 1)}"
    if not task:
        return text
    redrawn = run.manifest["redrawn"]
    drawn = f", {redrawn} draws replaced that its tokenizer does not allow" if redrawn else ""
    return f"{text} ({task}, {run.manifest['register'] or 'own'} register{drawn})"


def texts(
    file: Annotated[Path, typer.Option("--out", help="JSONL file to write, replaced if there")],
    number: Annotated[int, typer.Option(help="library files")] = 8,
    tokens: Annotated[int, typer.Option(help="tokens of headscope/bundled-python")] = 512,
) -> None:
    """Write prompts of real text: openings of Python library files, for capture --prompts."""
    from headscope.app.prompt_files import write_texts

    write_texts(file, number, tokens)
    print_text(f"{number} texts in {file}")
