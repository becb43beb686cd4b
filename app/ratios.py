"""Ratios: the result of a benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from headscope.app.contenders import ATTENTION, MODEL


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Return the tables of a benchmark's result: attention, then a model of one layer."""
    machine, heads = result["machine"], result["setup"]["heads"]
    yield _table(
        f"Attention, {heads} heads of {result['setup']['size']}, causal, float32; "
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_after']}",
        ("tokens", "threads", "SDPA ms", "headscope", "eager", "eager + statistics"),
        (
            (
                str(row["length"]),
                str(row["threads"]),
                f"{row['median_ms']['sdpa']:.1f}",
                *(_times(row, name) for name in ("headscope", "eager", "eager_statistics")),
            )
            for row in result["attention"]
        ),
        "Columns after SDPA: its time, so many times. Only headscope and the last have statistics.",
    )
    yield _table(
        "Extra memory of one call, MB, results included",
        ("tokens", "SDPA", "headscope", "eager", "eager+statistics", "model", "capture", "bridge"),
        ((str(row["length"]), *_megabytes(row)) for row in result["memory"]),
        "The last three: a whole model of one layer; alone, captured, and as a bridge.",
    )
    memory = {row["length"]: row["extra_bytes"] for row in result["memory"]}
    yield _table(
        "Capture beside the pattern cache of a TransformerBridge, one layer of GPT-2",
        ("tokens", "model ms", "capture", "bridge", "capture is faster", "takes less memory"),
        (
            (
                str(row["length"]),
                f"{row['median_ms']['forward']:.1f}",
                _times(row, "capture"),
                _times(row, "bridge_cache"),
                _text(_less(row["median_ms"]), "{:.1f}×"),
                _text(_less(memory[row["length"]]), "{:.1f}×"),
            )
            for row in result["model"]
        ),
        "Capture and bridge: the time of the model alone, so many times. The bridge keeps the "
        "N×N pattern and no statistics.",
    )


def _table(title: str, columns: tuple[str, ...], rows: Any, caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption=caption)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _times(row: Mapping[str, Any], name: str) -> str:
    return _text(row["ratio"].get(name), "{:.2f}×")


def _megabytes(row: Mapping[str, Any]) -> Iterator[str]:
    for name in (*ATTENTION, *MODEL):
        value = row["extra_bytes"].get(name)
        yield _text(None if value is None else value / 1e6, "{:.0f}")


def _less(row: Mapping[str, float | None]) -> float | None:
    ours, theirs = row.get("capture"), row.get("bridge_cache")
    return theirs / ours if ours and theirs else None


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
