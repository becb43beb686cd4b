"""``headscope export`` and ``headscope import-headvis``: the heads of a run as files, and back."""

from pathlib import Path
from typing import Annotated

import typer

from headscope.app.cli.console import print_text

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]


def export(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(help="file .csv, .parquet or .json; with --headvis, a new folder"),
    ],
    wide: Annotated[
        bool, typer.Option("--wide", help="a row a head; without it, a row a head and score")
    ] = False,
    headvis: Annotated[
        bool, typer.Option("--headvis", help="a HeadVis tree, from one more pass over the prompts")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="where the model is now, if it was moved (--headvis)")
    ] = None,
) -> None:
    """Write the scores of all heads of a run: CSV, Parquet, JSON, or a HeadVis tree.

    Every row says units, number of prompts, evidence, convention, model and run.
    """
    from headscope.app.exports import tables
    from headscope.app.exports.headvis import write
    from headscope.probes.storage import run_folder

    opened = run_folder.open(run)
    if headvis:
        write(opened, out, model)
    else:
        tables.write(out, opened.results(), opened.manifest, opened.name, wide=wide)
    print_text(f"written: {out}")


def import_headvis(
    tree: Annotated[Path, typer.Argument(metavar="TREE", help="folder with config.json")],
    run: Annotated[Path, typer.Option(help="run of the same model, which takes the metrics")],
    same_model: Annotated[
        bool, typer.Option("--same-model", help="the tree is of the run's model, by another name")
    ] = False,
) -> None:
    """Import the metrics of a HeadVis tree as a result of a run."""
    from headscope.app.exports.headvis import NAME
    from headscope.app.exports.headvis_import import add
    from headscope.probes.storage import run_folder

    result = add(run_folder.open(run), tree, same_model=same_model)
    print_text(f"{len(result)} metrics are now {NAME} in {run}; next: headscope report {run}")
