"""``headscope demo``: the main job on the bundled model, or on another one."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headscope import analyses
from headscope.app.cli.analyze import print_costs, report_missing
from headscope.app.cli.console import Register, err, print_text
from headscope.app.cli.progress import bar
from headscope.app.cli.report import print_report

STORY = (
    "sinks", "sink_controls", "entropy", "head_types", "retrieval", "needle_sweep", "vocabulary",
    "importance", "rollout", "sae_circuits",
)  # fmt: skip
"""What the demo runs: sinks, previous-token, copying and retrieval heads, and what they matter."""


def demo(
    model: Annotated[
        str, typer.Option(help="model, as headscope capture takes it")
    ] = "headscope/bundled",
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="folder of the run; default: runs/demo, or runs/demo-MODEL"),
    ] = None,
    number: Annotated[int, typer.Option(help="prompts to capture")] = 32,
    seed: Annotated[int, typer.Option(help="seed of the prompts")] = 0,
    register: Register = None,
    every: Annotated[bool, typer.Option("--all", help="run every analysis, some minutes")] = False,
) -> None:
    """Run the main job on a model: capture a story, the analyses of the demo, report."""
    from headscope.app.pipeline import analyze_run, capture_run

    suffix = "" if model == "headscope/bundled" else f"-{Path(model).name.replace('@', '-')}"
    stated: dict[str, float] = {}
    with bar(err, stated) as progress:
        run = capture_run(
            folder or Path(f"runs/demo{suffix}"),
            model,
            task="story",
            number=number,
            seed=seed,
            register=register,
            overwrite=True,
            progress=progress,
        )
        names = analyses.names() if every else STORY
        announce = partial(print_costs, stated=stated)
        outcomes = analyze_run(run, names, announce=announce, progress=progress)
    code = report_missing(run, outcomes)
    print_report(run)
    print_text(f"open the dashboard: headscope app {run.path}")
    if code:
        raise typer.Exit(code)
