"""Pages that follow from declarations and measurements: statistics and benchmarks."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headscope.analyses._runtime import taxonomy
from headscope.kernels import statistics
from headscope.kernels.formatting import amount
from headscope.kernels.statistic import MERGES, Statistic
from headscope.kernels.triton.plan import ways
from headscope_benchmarks.tables import (
    Table,
    ablation_tables,
    circuit_tables,
    context_tables,
    markdown,
    tables,
)

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NONE = "–"
WAYS = {
    "forward": "fused forward pass",
    "columns": "pass over columns, given lse",
    "rows": "pass over rows, given lse",
    "gathers": "gathers at a few keys, given lse",
    "topk": "search for the largest, given lse",
    "panels": "torch panels",
}
CIRCUITS = """`python3 -P benchmarks/circuits.py`: ROC AUC of every method, mean over {trials}
parts of the prompts of a task, each of {prompts} and as many corrupted ones, with a 95 % t
interval. The analysis `circuit_methods` measures the same on a model and task of yours. The
discrete SAE is trained on 10 prompts (O'Neill & Bui 2405.12522), on outputs as they are or scaled
to a mean square of 1; its information is what the codes say of clean and corrupted, above chance.
Constructed models have a circuit that is known; elsewhere a head is true when patching it loses
more than 5 % of the metric, and an edge between two heads when patching it loses more than 2 %.
Where not all are patched, a random sample stands for the rest. Every method from the linear probe
upwards but attribution reads what heads write and not what the task loses without it: a head that
writes otherwise on the corrupted prompt and is not read counts like one that is, and a head whose
outputs are distributed alike on both sides (previous-token heads of random names) cannot be told,
which is what the linear probe shows."""


def statistics_page() -> str:
    """Describe every statistic from its declaration."""
    declared = [statistics.load(name) for name in statistics.names()]
    taken = ways(statistic.name for statistic in declared)
    parts = [
        "# Statistics",
        "What a capture can hold. Ask for a statistic by name: "
        '`capture(model, prompts, stats=("entropy", "received"))`; `headscope statistics` prints '
        "this list. Every variable has the dims prompt, layer and head, and those listed here.",
        "In the formulas P is the matrix of attention weights of a head, i one of its queries, j "
        "or k one of its keys, s the logits, v the values.",
        markdown(
            ("name", "what", "dims", "units", "range"),
            (
                (
                    f"[`{statistic.name}`](#{statistic.name})",
                    statistic.title,
                    ", ".join(statistic.dims) or NONE,
                    statistic.units or NONE,
                    bounds(statistic),
                )
                for statistic in declared
            ),
        ),
        "## Definitions",
        *(part for statistic in declared for part in definition(statistic)),
        "## Engines",
        "On a processor every statistic comes from row panels. Where the machine has a C compiler "
        "a compiled sweep makes the weights a few rows at a time, and with them what these are "
        "made of: "
        + ", ".join(f"`{statistic.name}`" for statistic in declared if statistic.reductions)
        + "; it keeps the weights of a panel for the others only. Where the processor multiplies "
        "bfloat16 matrices (AMX), every float32 number goes in as the sum of three of bfloat16, "
        "which is as exact as BLAS and more than twice as fast. Elsewhere torch does it, with the "
        "same numbers to rounding. On a graphics processor "
        "each statistic takes the way below; torch panels are the same code as on a processor, "
        "exact, but not written for the device.",
        markdown(
            ("way", "statistics"),
            (
                (
                    WAYS[pass_name],
                    ", ".join(f"`{name}`" for name in taken if taken[name] == pass_name),
                )
                for pass_name in dict.fromkeys(taken.values())
            ),
        ),
        "## Merge rules",
        "How results of parts of a text combine; w = exp(lse of the part - lse of all).",
        markdown(("rule", "how"), MERGES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def definition(statistic: Statistic) -> Iterator[str]:
    """Define one statistic: meaning, formula, source."""
    _, _, rest = statistic.doc.strip().partition("\n\n")
    yield f"### {statistic.name}"
    yield f"{statistic.title}."
    yield f"```text\n{statistic.formula}\n```"
    if rest:
        yield inspect.cleandoc(rest).replace("``", "`")
    yield (
        f"In {statistic.units or 'no units'}, {bounds(statistic)}. "
        f"Parts merge by the rule *{statistic.merge}*."
        + (
            " It compares places in one text, so cross-attention has none."
            if statistic.positional
            else ""
        )
    )
    yield f"**Source:** {statistic.source}"


def head_types_page() -> str:
    """List the types of heads that analyses name, with their place in the survey."""
    parts = [
        "# Head types",
        "The types of heads that analyses name, with stage, evidence and method in the words of "
        "*Attention Heads of Large Language Models: A Survey*. The dashboard filters heads by "
        "them, and a report lists the heads of each type.",
        markdown(
            ("type", "stage", "placed by", "evidence", "method"),
            (
                (kind, term.stage, term.placed_by, term.evidence, term.way)
                for kind, term in taxonomy.catalogue()
            ),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def benchmarks_page() -> str:
    """Tabulate every committed result."""
    parts = [
        "# Benchmarks",
        "Measured side by side in one run, after a check of every contender against float64; read "
        "the ratios, for milliseconds depend on the machine and its load. Yours, in a minute: "
        "`headscope bench`. These: `python3 -P benchmarks/cpu.py --long`, "
        "`python3 -P benchmarks/context.py` for long texts, `python3 -P benchmarks/ablation.py` "
        "for sweeps of ablations, `python3 -P benchmarks/real_model.py` for jobs on a real model, "
        "and `python3 -P benchmarks/gpu.py` where there is a CUDA device. "
        "Whole results, with spreads and errors, are in `benchmarks/results`.",
    ]
    if not list(RESULTS.glob("gpu-*.json")):
        parts.append("No graphics processor has been measured yet, and nothing is claimed of one.")
    for result in results("[cg]pu-*.json"):
        machine = result["machine"]
        parts += [
            f"## {machine.get('gpu', machine['cpu'])}",
            f"{machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, Python "
            f"{machine['python']}, torch {machine['torch']}; load {machine['load_after']} at the "
            "end.",
            *sections(tables(result)),
        ]
    for result in results("context-*.json"):
        title = f"## Long texts: {result['machine']['cpu']}"
        parts += [title, *sections(context_tables(result))]
    for result in results("ablation-*.json"):
        title = f"## Mean ablation of every head: {result['machine']['cpu']}"
        parts += [title, *sections(ablation_tables(result))]
    for result in results("circuits.json"):
        parts += [
            "## Methods that find circuits",
            CIRCUITS.replace("\n", " ").format(
                trials=min(case["trials"] for case in result.values()),
                prompts=min(case["prompts"] for case in result.values()),
            ),
            *sections(circuit_tables(result)),
        ]
    for result in results("real-model-*.json"):
        parts += [
            f"## SmolLM2-135M, two threads: {result['machine']['cpu']}",
            "What `python3 -P benchmarks/real_model.py` measures: jobs in seconds, ablation of "
            "every head against hooks that do one head and one pass at a time, and loading.",
            markdown(
                ("bar", "measured", "must be"),
                (
                    (name, amount(value), f"{'≥' if 'faster' in name else '≤'} {must:g}")
                    for name, (value, must) in result["bars"].items()
                ),
            ),
            "The analyses of the demo, in its order; what one measured the next ones share. Stated "
            "is what `headscope analyze` says before it runs them.",
            markdown(
                ("analysis", "seconds", "stated", "verdict"),
                (
                    (name, amount(row["seconds"]), amount(row["stated"]), row["verdict"] or NONE)
                    for name, row in result["story"].items()
                ),
            ),
        ]
    for result in results("sessions-*.json"):
        sizes = [megabytes for _, megabytes in result["megabytes"]]
        parts += [
            f"## Several browsers on the dashboard: {result['machine']['cpu']}",
            f"`python3 -P benchmarks/sessions.py RUN`, a run of {result['model']}: "
            f"{result['sessions']} sessions, each with a text and a head of its own, go from "
            f"screen to screen for {result['seconds']} seconds. They opened {result['opened']} "
            f"screens and met {len(result['errors'])} errors, which finding the text or head of "
            "another session would be. "
            f"The server took {sizes[len(sizes) // 3]:,} MB after the first third of the time and "
            f"{sizes[-1]:,} MB at its end ({result['grown']:+.1%}; at most 5 %).",
        ]
    for result in results("views-*.json"):
        parts += views(result)
    for result in results("instructions.json"):
        for triton, kernels in result.items():
            parts += [
                f"## Triton kernels as Triton {triton} compiles them, without a GPU",
                instructions(kernels),
                "Registers a thread, bytes of stack a thread and of shared memory a block, the "
                "matrix instruction, and instructions for each score in the inner loop.",
            ]
    return "\n\n".join(parts) + "\n"


def views(result: Mapping[str, Any]) -> Iterator[str]:
    """Tabulate the cost of views in a browser, and the bars of the dashboard."""
    yield f"## Views in a browser: {result['machine']['cpu']}"
    if "pages" in result:
        pages = result["pages"]
        yield (
            "`python3 -P benchmarks/views.py --peers PYTHON`: the page of one head of "
            "SmolLM2-135M, or of a layer, as each writes it from the weights; of 4,096 tokens ours "
            "is the long view. Megabytes hold the scripts of the page, which CircuitsVis has in it "
            "and BertViz fetches (here from the machine itself). Drawn is from the opening to two "
            f"frames with the pattern in them; load {pages['load_before']} before and "
            f"{pages['load_after']} after."
        )
        yield markdown(
            ("tokens", "what", "view", "MB", "written, s", "drawn, s"),
            (
                (
                    f"{row['tokens']:,}", row["what"], row["view"],
                    NONE if row["bytes"] is None else amount(row["bytes"] / 1e6),
                    NONE if row["made_s"] is None else amount(row["made_s"]),
                    row["failed"] or amount(row["drawn_s"]),
                )
                for row in pages["rows"]
            ),
        )  # fmt: skip
    if "dashboard" in result:
        dashboard = result["dashboard"]
        yield (
            "The dashboard on 32 × 32 heads of random weights; load "
            f"{dashboard['load_before']} before and {dashboard['load_after']} after. A click sends "
            f"{dashboard['bytes a click'] / 1000:.0f} kB."
        )
        yield markdown(
            ("bar", "measured", "must be"),
            (
                (name, amount(value), f"≤ {amount(must)}")
                for name, (value, must) in result["bars"].items()
            ),
        )


def results(pattern: str) -> Iterator[dict[str, Any]]:
    """Read the result files of a pattern."""
    for file in sorted(RESULTS.glob(pattern)):
        yield json.loads(file.read_text(encoding="utf-8"))


def sections(laid_out: Iterable[Table]) -> Iterator[str]:
    """Write tables with their titles and captions."""
    for table in laid_out:
        yield from (f"### {table.title}", markdown(table.columns, table.rows), table.caption)


def instructions(kernels: Mapping[str, Mapping[str, object]]) -> str:
    """Tabulate what every kernel was compiled to."""
    columns = list(dict.fromkeys(name for kernel in kernels.values() for name in kernel))
    rows = (
        (name, *(str(kernel.get(column, NONE)) for column in columns))
        for name, kernel in kernels.items()
    )
    return markdown(("kernel", *columns), rows)


def bounds(statistic: Statistic) -> str:
    """Write the range of a statistic."""
    low, high = ("" if bound is None else f"{bound:g}" for bound in (statistic.low, statistic.high))
    return f"{low or '-∞'} to {high or '∞'}"
