"""Bars of the graphics processor's benchmark, and which forward pass its planner should take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headscope.app.bench.bars import Bar

Rows = Sequence[Mapping[str, Any]]

FROM = 8192
"""Tokens from which the bars of time count."""
LONGEST = 131072

ROWS = Bar(
    "forward with rows",
    "our forward pass with entropy and maximum / our plain forward pass, 8192 tokens and more",
    must=1.12,
    aim=1.05,
)
ALL = Bar(
    "all statistics",
    "capture of every column / default SDPA, 8192 tokens and more, heads of 128",
    must=1.2,
    aim=1.0,
)
ROOM = Bar(
    "131072 tokens",
    "extra memory of one layer, 32 heads of 128, every column, beyond q, k, v and z",
    must=8.0,
    units="GB",
)


def judge(rows: Rows) -> list[dict[str, Any]]:
    """Judge every bar from the rows of a result.

    Returns
    -------
    A row for every bar, with the worst of its cases.
    """
    long = [row for row in rows if row["length"] >= FROM]
    return [
        ROWS.judge(
            {
                _where(row): round(times["forward_rows"] / times["forward"], 3)
                for row in long
                if {"forward", "forward_rows"} <= (times := row["median_ms"]).keys()
            }
        ),
        ALL.judge(
            {
                _where(row): row["ratio"]["triton/top8"]
                for row in long
                if row["size"] == 128 and "triton/top8" in row["ratio"]
            }
        ),
        ROOM.judge(
            {
                _where(row): round((row["extra_bytes"]["triton/top8"] - row["z_bytes"]) / 1e9, 3)
                for row in rows
                if row["length"] == LONGEST
                and (row["batch"], row["heads"], row["size"]) == (1, 32, 128)
                and "triton/top8" in row["extra_bytes"]
            }
        ),
    ]


def plan(rows: Rows) -> dict[str, str]:
    """Name the faster way to every statistic by head size: our forward pass, or torch's.

    Returns
    -------
    ``fused`` or ``stock`` by size: whichever takes less time in all over texts of 8192 tokens and
    more. Sizes at which either was not measured are left out.
    """
    totals: dict[str, dict[str, float]] = {}
    for row in rows:
        times = row["median_ms"]
        if row["length"] >= FROM and {"fused/top8", "stock/top8"} <= times.keys():
            total = totals.setdefault(str(row["size"]), {"fused": 0.0, "stock": 0.0})
            for way in total:
                total[way] += times[f"{way}/top8"]
    return {size: min(total, key=lambda way: total[way]) for size, total in totals.items()}


def _where(row: Mapping[str, Any]) -> str:
    return (
        f"{row['length']} tokens, heads {row['heads']}/{row['kv_heads']} of {row['size']}, "
        f"batch {row['batch']}"
    )
