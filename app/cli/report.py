"""``headscope report``: the report and the tables of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.app.cli.console import out, print_text

if TYPE_CHECKING:
    from headscope.probes.storage.run_folder import Run


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]) -> None:
    """Write report.html of a run, and its heads as heads.csv, scores.csv, Parquet and JSON."""
    from headscope.probes.storage import run_folder

    print_report(run_folder.open(run))


def print_report(run: Run) -> None:
    """Write the report of a run, and print the heads that stand out."""
    from headscope.app.report.build import write_report
    from headscope.app.report.findings import findings_table
    from headscope.probes.storage.run_folder import REPORT

    page = write_report(run)
    out.print(findings_table(run.results()))
    print_text(f"report: {page} (and {', '.join(REPORT[1:])} beside it)")
