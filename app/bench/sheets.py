"""Sheets: the result of a benchmark as tables of text, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headscope.app.bench.contenders import COLUMNS, ENGINES, FLEX, OTHERS

NONE = "–"
LABELS = {
    "rows": "rows",
    "entropy": "+ entropy",
    "columns": "+ columns",
    "histogram": "+ histogram",
    "top8": "+ top-8",
    "headscope": "best engine",
    "panels": "torch only",
    "sdpa": "SDPA",
    "eager": "eager",
    "eager_statistics": "eager + statistics",
    "bridge": "bridge",
    "flex": "FlexAttention",
    "flex_aux": "with lse, max",
    "sdpa_flash": "FlashAttention",
    "sdpa_cudnn": "cuDNN",
    "forward": "model",
    "forward_rows": "forward, max, entropy",
    "second": "second pass",
    "triton": "Triton",
    "fused": "fused",
    "stock": "stock",
    "capture": "model, captured",
    "bridge_cache": "model, as a bridge",
}
COLUMN_NOTE = "Columns: " + "; ".join(
    f"{LABELS[name]} is {', '.join(stats)}" for name, stats in COLUMNS.items()
)
COLUMN_NOTE += ". Each has those before it too, and z."
WORDS = {True: "met", False: "not met", None: NONE}


@dataclass(frozen=True)
class Sheet:
    """One table: a title, the names of its columns, rows of text and what the columns mean."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def sheets(result: Mapping[str, Any]) -> Iterator[Sheet]:
    """Lay out the result of `headscope bench` or of the benchmark of a graphics processor."""
    if "gpu" in result["machine"]:
        from headscope.app.bench.gpu_sheets import gpu_sheets

        yield from gpu_sheets(result)
        return
    setup = result["setup"]
    unit = ", with the processor's matrix unit" if setup.get("matrix_unit") else ""
    best = f"The best engine of this machine is the compiled sweep{unit}."
    if setup["compiled"] is not True:
        best = f"The best engine of this machine is torch only: {setup['compiled']}."
    shape = f"{setup['heads']} heads of {setup['size']}, causal, float32"
    for engine in ENGINES:
        names = [f"{engine}/{column}" for column in COLUMNS]
        yield _times(
            result["attention"],
            f"Headscope, {label(engine)}: time / SDPA, {shape}",
            names,
            f"{COLUMN_NOTE} {best}",
        )
    yield _times(
        result["attention"],
        f"Others: time / SDPA, {shape}",
        [*OTHERS, *sorted(FLEX)],
        "Eager + statistics computes what all of headscope's columns do. The bridge is the "
        "attention layer of a TransformerBridge given q, k and v, its pattern cached.",
    )
    yield _memory(result["memory"])
    yield _model(result["model"])
    yield bars(result["bars"])


def label(name: str) -> str:
    """Say what a contender or a column is.

    Examples
    --------
    >>> label("panels/top8")
    'torch only + top-8'
    """
    return " ".join(LABELS.get(part, part) for part in name.split("/"))


def text(value: float | None, form: str) -> str:
    """Write a number, or a dash where there is none.

    Examples
    --------
    >>> text(1.5, "{:.2f}×"), text(None, "{:.2f}×")
    ('1.50×', '–')
    """
    return NONE if value is None else form.format(value)


def bars(judged: list[Mapping[str, Any]]) -> Sheet:
    """Lay out the bars of a result."""
    return Sheet(
        "Bars, each at its worst case",
        ("bar", "must", "aim", "measured", "must is", "aim is", "where"),
        tuple(
            (
                bar["bar"],
                _bound(bar, "must"),
                _bound(bar, "aim"),
                text(bar["measured"], "{:.3g} " + bar["units"]).strip(),
                WORDS[bar["met"]],
                NONE if bar["aim"] is None else WORDS[bar["aim_met"]],
                bar["worst_at"] or NONE,
            )
            for bar in judged
        ),
        "Computed from the values above. "
        + " ".join(f"{bar['bar'].capitalize()}: {bar['what']}." for bar in judged),
    )


def _bound(bar: Mapping[str, Any], name: str) -> str:
    sign = "≥" if bar["bound"] == "at least" else "≤"
    return text(bar[name], f"{sign} {{:.3g}} {bar['units']}").strip()


def _times(rows: list[Mapping[str, Any]], title: str, names: list[str], caption: str) -> Sheet:
    return Sheet(
        title,
        ("tokens", "threads", "SDPA ms", *(label(name.rpartition("/")[2]) for name in names)),
        tuple(
            (
                str(row["length"]),
                str(row["threads"]),
                f"{row['median_ms']['sdpa']:.1f}",
                *(text(row["ratio"].get(name), "{:.2f}×") for name in names),
            )
            for row in rows
        ),
        f"{caption}{_reasons(rows, names)}",
    )


def _reasons(rows: list[Mapping[str, Any]], names: list[str]) -> str:
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, why in row["not_run"].items():
            if name in names:
                first.setdefault((name, why), row["length"])
    return "".join(
        f" Not run from {length} tokens on: {label(name)}, {why}."
        for (name, why), length in first.items()
    )


def _memory(rows: list[Mapping[str, Any]]) -> Sheet:
    names = dict.fromkeys(name for row in rows for name in row["extra_bytes"])
    return Sheet(
        "Extra memory of one call beyond its inputs, MB, results included",
        ("tokens", *(str(row["length"]) for row in rows)),
        tuple((label(name), *(_megabytes(row, name) for row in rows)) for name in names),
        "In brackets: times z and the other outputs.",
    )


def _megabytes(row: Mapping[str, Any], name: str) -> str:
    extra, outputs = row["extra_bytes"].get(name), row["output_bytes"].get(name)
    if extra is None:
        return NONE
    share = f" ({extra / outputs:.1f}×)" if outputs else ""
    return f"{extra / 1e6:.0f}{share}"


def _model(rows: list[Mapping[str, Any]]) -> Sheet:
    return Sheet(
        "A whole model of one layer of GPT-2: time / the model alone",
        ("tokens", "model ms", "captured", "as a bridge, pattern cached"),
        tuple(
            (
                str(row["length"]),
                f"{row['median_ms']['forward']:.1f}",
                text(row["ratio"].get("capture"), "{:.2f}×"),
                text(row["ratio"].get("bridge_cache"), "{:.2f}×"),
            )
            for row in rows
        ),
        "Captured has the statistics up to the histogram; the bridge keeps the N×N pattern only.",
    )
