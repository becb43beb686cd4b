"""Sheets of a graphics processor's benchmark: one a head shape, then the bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headscope.app.bench.gpu_contenders import CAPTURES, FORWARD, PLANS, SECOND, STOCK
from headscope.app.bench.sheets import COLUMN_NOTE, Sheet, bars, label, text


def gpu_sheets(result: Mapping[str, Any]) -> Iterator[Sheet]:
    """Lay out the result of benchmarks/gpu.py."""
    tokens = result["setup"]["tokens"]
    shapes = dict.fromkeys((row["heads"], row["kv_heads"], row["size"]) for row in result["rows"])
    for heads, kv_heads, size in shapes:
        rows = [
            row
            for row in result["rows"]
            if (row["heads"], row["kv_heads"], row["size"]) == (heads, kv_heads, size)
        ]
        shape = f"{heads} heads of {size}, {kv_heads} KV heads, bfloat16, {tokens} tokens in all"
        yield _stock(rows, f"Stock attention and our passes: time / SDPA, {shape}")
        yield _captures(rows, f"Captures: time / SDPA, {shape}")
    yield bars(result["bars"])


def _stock(rows: list[Mapping[str, Any]], title: str) -> Sheet:
    names = [*list(STOCK)[1:], "flex_aux", *FORWARD, *SECOND]
    return Sheet(
        title,
        ("tokens", "SDPA ms", "TFLOP/s", "eager", *map(label, names), "ceiling ms", "second"),
        tuple(
            (
                str(row["length"]),
                text(row["median_ms"].get("sdpa"), "{:.2f}"),
                text(row["teraflops"].get("sdpa"), "{:.0f}"),
                text((row["eager"] or {}).get("ratio", {}).get("eager"), "{:.1f}×"),
                *(text(row["ratio"].get(name), "{:.2f}×") for name in names),
                text((row["ceiling_ms"] or {}).get("forward"), "{:.2f}"),
                text((row["ceiling_ms"] or {}).get("second"), "{:.2f}"),
            )
            for row in rows
        ),
        "Eager at a batch that fits, beside SDPA at the same. The ceilings are the least time of a "
        "forward pass and of a second pass by the rates of the chip.",
    )


def _captures(rows: list[Mapping[str, Any]], title: str) -> Sheet:
    names = [*CAPTURES, *PLANS]
    return Sheet(
        title,
        ("tokens", *map(label, names), "TFLOP/s", "extra GB"),
        tuple(
            (
                str(row["length"]),
                *(text(row["ratio"].get(name), "{:.2f}×") for name in names),
                text(row["teraflops"].get("triton/top8"), "{:.0f}"),
                text(_gigabytes(row, "triton/top8"), "{:.2f}"),
            )
            for row in rows
        ),
        f"{COLUMN_NOTE} Fused and stock: every column after our forward pass and after torch's. "
        "TFLOP/s and memory are those of every column, memory with z and the other results.",
    )


def _gigabytes(row: Mapping[str, Any], name: str) -> float | None:
    extra = row["extra_bytes"].get(name)
    return None if extra is None else extra / 1e9
