"""``headscope app``: the dashboard, served on this machine only."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")],
    port: Annotated[int, typer.Option(help="port on this machine")] = 8501,
) -> None:
    """Open the dashboard on a run, on this machine only."""
    from headscope.app.dashboard.launch import command, served

    raise typer.Exit(subprocess.run(command(served(run), port), check=False).returncode)
