"""Tables: the result of a benchmark as text, for a terminal and for the documentation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headscope_benchmarks.baselines import FLEX, GPU_CAPTURES, OTHERS, STOCK
from headscope_benchmarks.targets import LONG_MEMORY, LONG_TEXT
from headscope_benchmarks.triton_passes import FORWARD, PLANS, SECOND

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
MET = {True: "met", False: "not met", None: NONE}

Result = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """One table: a title, the names of its columns, rows of text and what the columns mean."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str

    def __str__(self) -> str:
        return f"{self.title}\n\n{markdown(self.columns, self.rows)}\n\n{self.caption}\n"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(columns), line("---" for _ in columns), *map(line, rows)])


def tables(result: Result) -> Iterator[Table]:
    """Tabulate the result of benchmarks/cpu.py or benchmarks/gpu.py."""
    yield from _gpu(result) if "gpu" in result["machine"] else _cpu(result)
    yield _targets(result["bars"])


def context_tables(result: Result) -> Iterator[Table]:
    """Tabulate the result of benchmarks/context.py, and judge its target."""
    rows, setup = result["rows"], result["setup"]
    measured = {
        str(row["length"]): row["extra_bytes"]["capture"] / 1e6
        for row in rows
        if row["length"] == LONG_TEXT and "capture" in row["extra_bytes"]
    }
    target = LONG_MEMORY.judge(measured)
    bar = f" Bar: at most {target['must']} MB captured at {LONG_TEXT} tokens, {MET[target['met']]}."
    absent = "".join(
        f" Not run at {row['length']} tokens: {'bridge' if name != 'capture' else name}, {why}."
        for row in rows
        for name, why in row["not_run"].items()
    )
    cells = []
    for row in rows:
        captured, bridge = (row["extra_bytes"].get(name) for name in ("capture", "bridge_cache"))
        ratio = bridge / captured if bridge and captured else None
        megabytes = (_text(size and size / 1e6, "{:.0f}") for size in (captured, bridge))
        cells.append((str(row["length"]), *megabytes, _text(ratio, "{:.1f}×")))
    yield Table(
        f"Memory beyond the model, {setup['layers']} layers × {setup['heads']} heads of "
        f"{setup['size']}, one prompt, MB",
        ("tokens", "captured", "bridge, patterns cached", "bridge / captured"),
        tuple(cells),
        "Captured has the default statistics of every head. The bridge keeps the N×N patterns and "
        f"nothing else.{bar if measured else ''}{absent}",
    )


def ablation_tables(result: Result) -> Iterator[Table]:
    """Tabulate the result of benchmarks/ablation.py."""
    yield Table(
        "Against TransformerLens hooks",
        ("prompts", "heads", "headscope, ms", "TransformerLens / headscope", "largest difference"),
        tuple(
            (
                str(sweep["prompts"]),
                str(sweep["heads"]),
                f"{sweep['timing']['median_ms']['headscope']:.0f}",
                f"{sweep['timing']['ratio']['TransformerLens']:.1f}",
                f"{sweep['difference']:.1g} of {sweep['largest_effect']:.3g}",
            )
            for sweep in result["sweeps"]
        ),
        f"{result['task']}. TransformerLens {result['machine']['transformer_lens']}: a hook on one "
        "head at a time, prompts of one length in one pass. headscope ablates several heads in one "
        "pass and begins at the edited layer. Nothing is reported unless the numbers agree; the "
        "difference is of the metric, its largest change beside it.",
    )
    ratios = [(row["prompts"], row["tokens_in_a_pass"]["ratio"]) for row in result["rooms"]]
    yield Table(
        "Tokens in one pass",
        ("prompts", *ratios[0][1]),
        tuple(
            (str(prompts), *(f"{value:.2f}" for value in ratio.values()))
            for prompts, ratio in ratios
        ),
        "Time of the sweep with so many tokens in a pass, over that of the first column, which is "
        "what headscope takes.",
    )


def circuit_tables(result: Result) -> Iterator[Table]:
    """Tabulate the result of benchmarks/circuits.py: method × task × model, then the variants."""
    methods = list(dict.fromkeys(row["method"] for case in result.values() for row in case["rows"]))
    for kind, noun in (("node", "heads"), ("edge", "edges between heads")):
        judged = {
            name: {row["method"]: row[kind] for row in case["rows"]}
            for name, case in result.items()
            if any(row[kind] for row in case["rows"])
        }
        yield Table(
            f"AUC for the {noun} of a circuit",
            ("method", *judged),
            tuple(
                (method, *(_interval(by_method.get(method)) for by_method in judged.values()))
                for method in methods
            ),
            " ".join(
                f"{name}: {truth['heads']} of {truth['of']} heads and {truth['edges']} of "
                f"{truth['of_pairs']} pairs of heads are true; {truth['how']}."
                for name, case in result.items()
                if name in judged
                for truth in [case["truth"]]
            ),
        )
    varied = {name: case["variants"] for name, case in result.items() if case.get("variants")}
    if varied:
        changes = [row["changed"] for row in next(iter(varied.values()))]
        yield Table(
            "The discrete SAE with one thing changed: AUC for the heads, trained (before training; "
            "with shuffled labels)",
            ("changed", *varied),
            tuple(
                (
                    change,
                    *(
                        f"{_interval(row['trained SAE'])} ({row['untrained SAE'][0]:.2f}; "
                        f"{row['shuffled labels'][0]:.2f})"
                        for rows in varied.values()
                        for row in rows
                        if row["changed"] == change
                    ),
                )
                for change in changes
            ),
            "Outputs have a mean square of 1 where nothing else is said.",
        )


def _interval(ends: Sequence[float] | None) -> str:
    return NONE if ends is None else f"{ends[0]:.2f} ({ends[1]:.2f} to {ends[2]:.2f})"


def label(name: str) -> str:
    """Write the name of a baseline or a column as readers know it.

    Examples
    --------
    >>> label("panels/top8")
    'torch only + top-8'
    """
    return " ".join(LABELS.get(part, part) for part in name.split("/"))


def _text(value: float | None, form: str) -> str:
    """Write a number, or a dash where there is none."""
    return NONE if value is None else form.format(value)


def _columns_note(setup: Mapping[str, Any]) -> str:
    """Return which statistics the columns have."""
    columns = "; ".join(
        f"{label(name)} is {', '.join(stats)}" for name, stats in setup["columns"].items()
    )
    return f"Columns: {columns}. Each has those before it too, and z."


def _cpu(result: Result) -> Iterator[Table]:
    setup = result["setup"]
    unit = ", with the processor's matrix unit" if setup.get("matrix_unit") else ""
    best = f"The best engine of this machine is the compiled sweep{unit}."
    if setup["compiled"] is not True:
        best = f"The best engine of this machine is torch only: {setup['compiled']}."
    shape = f"{setup['heads']} heads of {setup['size']}, causal, float32"
    for engine in setup["engines"]:
        yield _times(
            result["attention"],
            f"Headscope, {label(engine)}: time / SDPA, {shape}",
            [f"{engine}/{column}" for column in setup["columns"]],
            f"{_columns_note(setup)} {best}",
        )
    yield _times(
        result["attention"],
        f"Others: time / SDPA, {shape}",
        [*OTHERS, *sorted(FLEX)],
        "Eager + statistics computes what all of headscope's columns do. The bridge is the "
        "attention layer of a TransformerBridge given q, k and v, its pattern cached.",
    )
    names = dict.fromkeys(name for row in result["memory"] for name in row["extra_bytes"])
    yield Table(
        "Extra memory of one call beyond its inputs, MB, results included",
        ("tokens", *(str(row["length"]) for row in result["memory"])),
        tuple(
            (label(name), *(_megabytes(row, name) for row in result["memory"])) for name in names
        ),
        "In brackets: times z and the other outputs.",
    )
    yield Table(
        "A whole model of one layer of GPT-2: time / the model alone",
        ("tokens", "model ms", "captured", "as a bridge, pattern cached"),
        tuple(
            (
                str(row["length"]),
                f"{row['median_ms']['forward']:.1f}",
                _text(row["ratio"].get("capture"), "{:.2f}×"),
                _text(row["ratio"].get("bridge_cache"), "{:.2f}×"),
            )
            for row in result["model"]
        ),
        "Captured has the statistics up to the histogram; the bridge keeps the N×N pattern only.",
    )


def _times(rows: Rows, title: str, names: list[str], caption: str) -> Table:
    """Tabulate times of a CPU as ratios, and from which length on a baseline was not run."""
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, why in row["not_run"].items():
            if name in names:
                first.setdefault((name, why), row["length"])
    absent = "".join(
        f" Not run from {length} tokens on: {label(name)}, {why}."
        for (name, why), length in first.items()
    )
    return Table(
        title,
        ("tokens", "threads", "SDPA ms", *(label(name.rpartition("/")[2]) for name in names)),
        tuple(
            (
                str(row["length"]),
                str(row["threads"]),
                f"{row['median_ms']['sdpa']:.1f}",
                *(_text(row["ratio"].get(name), "{:.2f}×") for name in names),
            )
            for row in rows
        ),
        f"{caption}{absent}",
    )


def _megabytes(row: Mapping[str, Any], name: str) -> str:
    extra, outputs = row["extra_bytes"].get(name), row["output_bytes"].get(name)
    if extra is None:
        return NONE
    share = f" ({extra / outputs:.1f}×)" if outputs else ""
    return f"{extra / 1e6:.0f}{share}"


def _gpu(result: Result) -> Iterator[Table]:
    setup = result["setup"]
    shapes: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        shapes.setdefault((row["heads"], row["kv_heads"], row["size"]), []).append(row)
    others = [*list(STOCK)[1:], "flex_aux", *FORWARD, *SECOND]
    captures = [*GPU_CAPTURES, *PLANS]
    for (heads, kv_heads, size), rows in shapes.items():
        shape = (
            f"{heads} heads of {size}, {kv_heads} KV heads, bfloat16, {setup['tokens']} tokens in "
            "all"
        )
        yield Table(
            f"Stock attention and our passes: time / SDPA, {shape}",
            ("tokens", "SDPA ms", "TFLOP/s", "eager", *map(label, others), "ceiling ms", "second"),
            tuple(
                (
                    str(row["length"]),
                    _text(row["median_ms"].get("sdpa"), "{:.2f}"),
                    _text(row["teraflops"].get("sdpa"), "{:.0f}"),
                    _text((row["eager"] or {}).get("ratio", {}).get("eager"), "{:.1f}×"),
                    *(_text(row["ratio"].get(name), "{:.2f}×") for name in others),
                    _text((row["ceiling_ms"] or {}).get("forward"), "{:.2f}"),
                    _text((row["ceiling_ms"] or {}).get("second"), "{:.2f}"),
                )
                for row in rows
            ),
            "Eager at a batch that fits, beside SDPA at the same. The ceilings are the least time "
            "of a forward pass and of a second pass by the rates of the chip.",
        )
        yield Table(
            f"Captures: time / SDPA, {shape}",
            ("tokens", *map(label, captures), "TFLOP/s", "extra GB"),
            tuple(
                (
                    str(row["length"]),
                    *(_text(row["ratio"].get(name), "{:.2f}×") for name in captures),
                    _text(row["teraflops"].get("triton/top8"), "{:.0f}"),
                    _gigabytes(row["extra_bytes"].get("triton/top8")),
                )
                for row in rows
            ),
            f"{_columns_note(setup)} Fused and stock: every column after our forward pass and "
            "after torch's. TFLOP/s and memory are those of every column, memory with z and the "
            "other results.",
        )


def _gigabytes(size: float | None) -> str:
    return NONE if size is None else f"{size / 1e9:.2f}"


def _targets(judged: Rows) -> Table:
    """Tabulate the targets of a result."""

    def bound(row: Mapping[str, Any], name: str) -> str:
        sign = "≥" if row["bound"] == "at least" else "≤"
        return _text(row[name], f"{sign} {{:.3g}} {row['units']}").strip()

    return Table(
        "Bars, each at its worst case",
        ("bar", "must", "aim", "measured", "must is", "aim is", "where"),
        tuple(
            (
                row["bar"],
                bound(row, "must"),
                bound(row, "aim"),
                _text(row["measured"], "{:.3g} " + row["units"]).strip(),
                MET[row["met"]],
                NONE if row["aim"] is None else MET[row["aim_met"]],
                row["worst_at"] or NONE,
            )
            for row in judged
        ),
        "Computed from the values above. "
        + " ".join(f"{row['bar'].capitalize()}: {row['what']}." for row in judged),
    )
