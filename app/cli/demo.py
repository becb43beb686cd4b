"""``headscope demo``: the main job on the bundled model."""

from pathlib import Path
from typing import Annotated

import typer

from headscope import analyses
from headscope.app.cli.analyze import report_missing
from headscope.app.cli.console import err, say
from headscope.app.cli.progress import bar
from headscope.app.cli.report import print_report

STORY = (
    "sinks", "sink_controls", "entropy", "head_types", "retrieval", "needle_sweep", "vocabulary",
    "importance", "rollout", "sae_circuits",
)  # fmt: skip
"""What the demo runs: which heads are sinks, look back, copy and retrieve, and what they matter."""


def demo(
    folder: Annotated[Path, typer.Option("--out", help="folder of the run")] = Path("runs/demo"),
    number: Annotated[int, typer.Option(help="prompts to capture")] = 32,
    seed: Annotated[int, typer.Option(help="seed of the prompts")] = 0,
    every: Annotated[bool, typer.Option("--all", help="run every analysis, some minutes")] = False,
) -> None:
    """Run the main job on the bundled model: capture, the analyses of its story, report."""
    from headscope.app.pipeline import analyze_run, capture_run

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
        outcomes = analyze_run(run, analyses.names() if every else STORY, progress=progress)
    code = report_missing(run, outcomes)
    print_report(run)
    say(f"open the dashboard: headscope app {run.path}")
    if code:
        raise typer.Exit(code)
