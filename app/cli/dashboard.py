"""``headscope app``: the dashboard, served on this machine only by default."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from headscope.app.cli.console import err, print_text


def dashboard(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, or of runs")],
    port: Annotated[int, typer.Option(help="port on this machine")] = 8501,
    address: Annotated[
        str, typer.Option(help="address to serve at; any other lets others in, without a password")
    ] = "127.0.0.1",
) -> None:
    """Open the dashboard on a run, on this machine only unless an address is given."""
    from headscope.app.dashboard.launch import command, is_local, served

    opened = command(served(run), port, address)
    if not is_local(address):
        print_text(
            f"warning: served at {address} without a password: whoever reaches it can read the runs"
            " and start jobs on this machine",
            err,
        )
    raise typer.Exit(subprocess.run(opened, check=False).returncode)
