"""``headscope reproduce``: the table of a paper, its numbers beside those of a local model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from headscope.app.cli.console import err, out, print_text
from headscope.kernels.errors import InvalidInput
from headscope.kernels.formatting import amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headscope.app.reproduction import Row

# Tokens in a text behind the sink rate of natural tokens, as in the paper, and texts, of which it
# has 100: fewer files are held out.
TEXTS, TOKENS = 32, 64


def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            metavar="ioi|greater_than|docstring|retrieval|sinks|FILE",
            help="the paper's table, or a JSON file that holds a circuit",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option("--model", help="folder or name; default: the paper's, if the cache has it"),
    ] = None,
    number: Annotated[int, typer.Option(min=2, help="prompts of the task")] = 64,
    coded: Annotated[int, typer.Option(min=10, help="prompts of the discrete SAE")] = 250,
    seed: Annotated[int, typer.Option(help="seed of the prompts")] = 0,
) -> None:
    """Reproduce the table of a paper: its numbers beside those of a local model."""
    from headscope.analyses.comparison import published
    from headscope.app import reproduction
    from headscope.probes import load_model

    if what in published.names() and what not in reproduction.NAMES:
        raise InvalidInput(
            f"{what}: its model is compiled, and no task here asks it; the record is data for "
            "headscope.analyses.comparison.published"
        )
    if what in ("retrieval", "sinks"):
        record = published.scores(what)
        models = list(record["shares" if what == "retrieval" else "rates"])
        about, sources, needs = record["about"], record["sources"], ""
    else:
        circuit = published.circuit(what)
        models = [circuit.model]
        about, sources, needs = circuit.about, circuit.sources, circuit.needs
    model = load_model(_at_hand(what, source, models, needs))
    print_text(f"measuring {model.name}", err)
    if what == "retrieval":
        rows = reproduction.of_retrieval(model, number, seed)
    elif what == "sinks":
        from headscope.probes.prompts.library import openings

        rows = reproduction.of_sinks(model, list(openings(TEXTS, TOKENS)), seed)
    else:
        rows = reproduction.of_circuit(circuit, model, number, seed, coded)
        if circuit.note:
            sources = [*sources, circuit.note]
    _print(f"{about}; measured: {model.name}", rows, sources)


def _at_hand(paper: str, source: str | None, expected: Sequence[str], needs: str) -> str:
    """Return the model to load, without asking the hub; refuse where none is on this machine."""
    from headscope.probes import constructed
    from headscope.probes.models.checkpoints import commit
    from headscope.probes.models.model_source import locate

    for name in expected if source is None else [source]:
        located = locate(name)
        path = located.path
        if Path(path).is_dir() or path in constructed.names() or commit(path, located.revision):
            return name
    models = " or ".join(expected) if source is None else source
    raise InvalidInput(
        f"model: reproduce {paper} needs {models}, which is not on this machine; "
        + (needs or "put it into the hub's cache, or give --model a folder with its weights")
    )


def _print(title: str, rows: Sequence[Row], sources: Sequence[str]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("what", "paper", "here", "95 % interval", "source of the paper's number"):
        table.add_column(column)
    for row in rows:
        interval = "" if math.isnan(row.lower) else f"{amount(row.lower)} to {amount(row.upper)}"
        numbers = (
            "" if math.isnan(number) else amount(number) for number in (row.published, row.measured)
        )
        table.add_row(row.title, *numbers, interval, row.source)
    out.print(table)
    for source in sources:
        print_text(f"source: {source}")
