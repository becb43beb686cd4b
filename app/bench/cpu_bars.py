"""Bars of the processor's benchmark: which measured values each of them judges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headscope.app.bench.bars import Bar
from headscope.app.bench.contenders import ENGINES

Rows = Sequence[Mapping[str, Any]]

FROM = 4096
"""Tokens from which the bars of time and memory count: below, fixed costs show."""

MASSES = ("max_weight", "first_mass", "received", "pooled_mean", "distance_hist", "topk")

SPEED = {
    "headscope/histogram": Bar(
        "all but top-8",
        "time of z, lse, max, entropy, first mass, received, pooled mean and histogram / SDPA",
        must=1.5,
        aim=1.2,
    ),
    "headscope/top8": Bar("with top-8", "the same with exact top-8 / SDPA", must=2.0, aim=1.4),
    "panels/columns": Bar("torch only", "the same without histogram, torch only / SDPA", must=2.1),
    "panels/histogram": Bar("torch only, histogram", "torch only, histogram / SDPA", must=2.6),
}
FASTER = Bar(
    "bridge, time",
    "time of a TransformerBridge's attention with its pattern cached / of all but top-8",
    must=10.0,
    least=True,
)
LIGHTER = Bar(
    "bridge, memory",
    "extra memory of the same two, results included",
    must=30.0,
    least=True,
)
SPACE = Bar("memory", "extra memory of every engine / (z + outputs)", must=4.0)
GROWTH = Bar(
    "memory, growth",
    "exponent of extra memory between the two longest texts: 1 is linear, the histogram's bins "
    "make it 1.1, N×N is 2",
    must=1.2,
    units="",
)
RELATIVE = Bar(
    "float64, z, lse, masses",
    "norm of the difference to float64 / norm, logits of standard deviation 1 to 64",
    must=1e-6,
    units="",
)
ENTROPY = Bar(
    "float64, entropy",
    "largest difference to float64, logits of standard deviation 1 to 64",
    must=1e-5,
    units="nats",
)


def judge(gate: Rows, attention: Rows, memory: Rows) -> list[dict[str, Any]]:
    """Judge every bar from the rows of a result.

    Parameters
    ----------
    gate, attention, memory
        Rows of the result file.

    Returns
    -------
    A row for every bar, with the worst of its cases.
    """
    judged = [bar.judge(dict(_ratios(attention, name))) for name, bar in SPEED.items()]
    judged.append(FASTER.judge(dict(_faster(attention))))
    judged.append(LIGHTER.judge(dict(_lighter(memory))))
    judged.append(SPACE.judge(dict(_space(memory))))
    judged.append(GROWTH.judge(dict(_growth(memory))))
    ours = [row for row in gate if row["contender"].partition("/")[0] in ENGINES]
    exact = ("z", "lse", *MASSES)
    judged.append(RELATIVE.judge(_errors(ours, exact, "relative")))
    judged.append(ENTROPY.judge(_errors(ours, ("entropy",), "error")))
    return judged


def _ratios(attention: Rows, name: str) -> Iterator[tuple[str, float]]:
    for row in attention:
        if row["length"] >= FROM and name in row["ratio"]:
            yield _where(row), row["ratio"][name]


def _faster(attention: Rows) -> Iterator[tuple[str, float]]:
    for row in attention:
        if row["length"] == FROM and "bridge" in row["ratio"]:
            ratio = row["ratio"]
            yield _where(row), round(ratio["bridge"] / ratio["headscope/histogram"], 3)


def _lighter(memory: Rows) -> Iterator[tuple[str, float]]:
    for row in memory:
        extra = row["extra_bytes"]
        if row["length"] == FROM and extra.get("bridge"):
            yield _where(row), round(extra["bridge"] / extra["headscope/histogram"], 3)


def _space(memory: Rows) -> Iterator[tuple[str, float]]:
    for row in memory:
        for name, extra in row["extra_bytes"].items():
            if row["length"] >= FROM and name.partition("/")[0] in ENGINES and extra:
                share = round(extra / row["output_bytes"][name], 3)
                yield f"{name}, {row['length']} tokens", share


def _growth(memory: Rows) -> Iterator[tuple[str, float]]:
    if len(memory) < 2 or memory[-1]["length"] < FROM:
        return
    shorter, longer = memory[-2:]
    for name, extra in longer["extra_bytes"].items():
        before = shorter["extra_bytes"].get(name)
        if name.partition("/")[0] in ENGINES and extra and before:
            exponent = math.log(extra / before) / math.log(longer["length"] / shorter["length"])
            yield f"{name}, {shorter['length']} to {longer['length']} tokens", round(exponent, 3)


def _errors(rows: Rows, outputs: Sequence[str], field: str) -> dict[str, float]:
    return {
        f"{row['contender']}, {row['output']}, σ {row['logit_deviation']:g}": row[field]
        for row in rows
        if row["output"] in outputs
    }


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['length']} tokens, {row['threads']} threads"
