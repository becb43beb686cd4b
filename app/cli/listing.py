"""``headscope analyses`` and ``statistics``: the names to choose from."""

import inspect
from typing import Annotated

import typer

from headscope import analyses
from headscope.analyses._runtime import taxonomy
from headscope.app.cli.console import print_text


def list_analyses(
    name: Annotated[str | None, typer.Argument(help="show one analysis in full")] = None,
) -> None:
    """List the analyses, or show the definition and the options of one."""
    if name is None:
        width = max(map(len, analyses.names()))
        for family, members in analyses.families().items():
            print_text(f"\n{analyses.heading(family)}")
            for member in members:
                print_text(f"  {member:{width}}  {analyses.summary(member)}")
        print_text("\nHead types: stage, evidence and method in the words of the survey.")
        for kind, term in taxonomy.catalogue():
            print_text(
                f"  {kind}: {term.stage} (placed by {term.placed_by}); {term.evidence}; {term.way}"
            )
        return
    print_text(inspect.cleandoc(analyses.load(name).__doc__ or ""))
    print_text("\nOptions (headscope analyze RUN --set NAME.OPTION=VALUE):")
    for option, (default, text, _) in analyses.options(name).items():
        print_text(f"  {name}.{option}={default}  {text}")


def list_statistics() -> None:
    """List the statistics of a capture: formula, units, range, source."""
    from headscope.kernels import statistics

    for name in statistics.names():
        statistic = statistics.load(name)
        low, high = (
            "" if bound is None else f"{bound:g}" for bound in (statistic.low, statistic.high)
        )
        bounds = f", {low or '-∞'} to {high or '∞'}" if low or high else ""
        units = statistic.units or "no units"
        print_text(f"{name}  ({', '.join(statistic.dims)}; {units}{bounds})")
        print_text(f"    {statistic.title}")
        print_text(f"    {statistic.formula}    [{statistic.source}]")
