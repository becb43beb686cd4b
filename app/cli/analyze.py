"""``headscope analyze``: analyses on a captured run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope import analyses
from headscope.app.cli.console import Register, err, print_text
from headscope.app.cli.progress import bar
from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from headscope.analyses._runtime.cost import Cost
    from headscope.app.outcomes import Outcome
    from headscope.probes.storage.run_folder import Run


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="analyses; default: the quick ones"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="run every analysis that is missing; minutes, or hours")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.OPTION=VALUE", help="an option of an analysis"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="task, or JSONL file, instead of the run's own prompts with answers, or of the "
            "tasks that analyses draw"
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Option(help="prompts drawn from the analyses' tasks")
    ] = None,
    register: Register = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="number format of sweeps of ablations: bfloat16 is quicker on processors that "
            "have it, and a sample in float32 says how far it agrees"
        ),
    ] = "float32",
    sae: Annotated[
        Path | None,
        typer.Option(help="folder of a sparse autoencoder by SAELens, or sae train"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="where the model is now, if it was moved")
    ] = None,
) -> None:
    """Run analyses on a captured run and keep their results in it.

    Without names those run that need the capture alone, or few passes of the model.
    """
    from headscope.probes.storage import run_folder

    if every and names:
        raise InvalidInput("--all: runs every analysis; leave out the option, or the names")
    # Before torch is imported, which takes seconds.
    named = [analyses.current(name) for name in names or ()]
    opened = run_folder.open(run)
    from headscope.app.outcomes import finished
    from headscope.app.pipeline import analyze_run, parse_settings, quick

    options = {
        analyses.current(name): values for name, values in parse_settings(settings or []).items()
    }
    known = finished(opened)
    missing = [name for name in analyses.names() if name not in known or name in options]
    selected = named or [name for name in missing if every or name in options or name in quick()]
    stated: dict[str, float] = {}
    with bar(err, stated) as progress:
        outcomes = analyze_run(
            opened,
            selected,
            task=task,
            number=number,
            options=options,
            source=model,
            register=register,
            dtype=dtype,
            sae=sae,
            announce=partial(print_costs, stated=stated),
            progress=progress,
        )
    code = report_missing(opened, outcomes, {*named, *options})
    remaining = [] if named else [name for name in missing if name not in selected]
    if remaining:
        print_text(
            f"left, as they run the model many times: {', '.join(remaining)}; headscope analyze "
            f"{run} NAME runs one, headscope analyze {run} --all runs them all"
        )
    if code:
        raise typer.Exit(code)
    print_text(f"next: headscope report {run}")


def print_costs(costs: Sequence[Cost], stated: dict[str, float]) -> None:
    """Say on standard error what analyses are expected to take, the longest first.

    Their seconds are written into ``stated``.
    """
    from headscope.analyses._runtime.cost import duration

    for cost in sorted(costs, key=lambda cost: -(cost.seconds or 0)):
        print_text(str(cost), err)
        if cost.seconds is not None:
            stated[cost.analysis] = cost.seconds
    if len(costs) > 1:
        print_text(f"together about {duration(sum(cost.seconds or 0 for cost in costs))}", err)


def report_missing(run: Run, outcomes: Mapping[str, Outcome], named: Collection[str] = ()) -> int:
    """Say on standard error which analyses gave no result, and return the exit code.

    It is 1 where one failed by a bug, 2 where one that the user named does not suit the model.
    """
    from headscope.app.outcomes import is_bug, reason

    code = 0
    for name, outcome in outcomes.items():
        if not isinstance(outcome, Exception):
            continue
        if is_bug(outcome):
            trace = run.error_file(name)
            print_text(f"failed: {name}: {reason(outcome)}; please report it with {trace}", err)
            code = 1
        else:
            print_text(f"not run: {name}: {outcome}", err)
            code = code or 2 * (name in named)
    return code
