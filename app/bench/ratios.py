"""Ratios: the result of a benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from headscope.app.bench.sheets import Sheet, sheets

WORDY = {"bar", "where"}


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Draw every table of a benchmark's result."""
    yield from map(draw, sheets(result))


def draw(sheet: Sheet) -> Table:
    """Draw one table."""
    table = Table(
        box=box.SIMPLE_HEAD, title=sheet.title, title_justify="left", caption=sheet.caption
    )
    for column in sheet.columns:
        justify: Any = "left" if column in WORDY else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    return table
