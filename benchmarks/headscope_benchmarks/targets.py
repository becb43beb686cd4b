"""Targets: what a benchmark must reach, judged from what it measured and never by hand."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headscope_benchmarks.baselines import ENGINES

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """One thing that must hold.

    Parameters
    ----------
    name
        Short name.
    what
        What is measured, against what, and where it counts.
    must
        Bound that must be kept.
    aim
        Bound that is hoped for; None where there is none.
    least
        Whether the bounds are the smallest values rather than the largest.
    units
        Units of the values.
    """

    name: str
    what: str
    must: float
    aim: float | None = None
    least: bool = False
    units: str = "×"

    def judge(self, cases: Mapping[str, float]) -> dict[str, Any]:
        """Judge whether every case keeps the bounds.

        Parameters
        ----------
        cases
            Measured values, by where.

        Returns
        -------
        A row for the result file: the worst case and whether bounds are met, None where nothing
        was measured.

        Examples
        --------
        >>> Target("speed", "ours / theirs", must=1.5).judge({"4096": 1.2, "8192": 1.6})["met"]
        False
        """
        worst = (min if self.least else max)(cases, key=lambda case: cases[case], default=None)
        value = None if worst is None else cases[worst]
        return {
            "bar": self.name,
            "what": self.what,
            "bound": "at least" if self.least else "at most",
            "units": self.units,
            "must": self.must,
            "aim": self.aim,
            "measured": value,
            "worst_at": worst,
            "cases": dict(cases),
            "met": self._keeps(value, self.must),
            "aim_met": self._keeps(value, self.aim),
        }

    def _keeps(self, value: float | None, bound: float | None) -> bool | None:
        if value is None or bound is None:
            return None
        return value >= bound if self.least else value <= bound


CPU_FROM = 4096
"""Tokens from which the targets of a CPU count: below, fixed costs show."""
SPEED = {
    "headscope/histogram": Target(
        "all but top-8",
        "time of z, lse, max, entropy, first mass, received, pooled mean and histogram / SDPA",
        must=1.5,
        aim=1.2,
    ),
    "headscope/top8": Target("with top-8", "the same with exact top-8 / SDPA", must=2.0, aim=1.4),
    "panels/columns": Target(
        "torch only", "the same without histogram, torch only / SDPA", must=2.1
    ),
    "panels/histogram": Target("torch only, histogram", "torch only, histogram / SDPA", must=2.6),
}
BRIDGE_TIME = Target(
    "bridge, time",
    "time of a TransformerBridge's attention with its pattern cached / of all but top-8",
    must=10.0,
    least=True,
)
BRIDGE_TIME_PLAIN = replace(BRIDGE_TIME, must=6.0)
"""Where the processor has no matrix unit: both sides are bound by the same two products in float32,
and SDPA, which keeps no statistic, is seven times as fast as the bridge."""
BRIDGE_MEMORY = Target(
    "bridge, memory", "extra memory of the same two, results included", must=30.0, least=True
)
MEMORY = Target("memory", "extra memory of every engine / (z + outputs)", must=4.0)
GROWTH = Target(
    "memory, growth",
    "exponent of extra memory between the two longest texts: 1 is linear, the histogram's bins "
    "make it 1.1, N×N is 2",
    must=1.2,
    units="",
)
RELATIVE = Target(
    "float64, z, lse, masses",
    "norm of the difference to float64 / norm, logits of standard deviation 1 to 64",
    must=1e-6,
    units="",
)
ENTROPY = Target(
    "float64, entropy",
    "largest difference to float64, logits of standard deviation 1 to 64",
    must=1e-5,
    units="nats",
)
NO_MASS = ("entropy", "topk_key")
"""Outputs that are not z, the normaliser or weights."""

LONG_TEXT = 16384
LONG_MEMORY = Target("long text", "memory of a capture beyond the model", must=1500, units="MB")
"""Of benchmarks/context.py, at 16384 tokens."""

GPU_FROM = 8192
"""Tokens from which the targets of time on a GPU count."""
GPU_LONGEST = 131072
GPU_FORWARD = Target(
    "forward with rows",
    "our forward pass with entropy and maximum / our plain forward pass, 8192 tokens and more",
    must=1.12,
    aim=1.05,
)
GPU_CAPTURE = Target(
    "all statistics",
    "capture of every column / default SDPA, 8192 tokens and more, heads of 128",
    must=1.2,
    aim=1.0,
)
GPU_MEMORY = Target(
    "131072 tokens",
    "extra memory of one layer, 32 heads of 128, every column, beyond q, k, v and z",
    must=8.0,
    units="GB",
)


def judge_cpu(
    gate: Rows, attention: Rows, memory: Rows, *, matrix_unit: bool
) -> list[dict[str, Any]]:
    """Judge every target of a CPU from the rows of a result, each by its worst case."""
    times = {
        f"{row['length']} tokens, {row['threads']} threads": row["ratio"]
        for row in attention
        if row["length"] >= CPU_FROM
    }
    judged = [
        target.judge({case: ratio[name] for case, ratio in times.items() if name in ratio})
        for name, target in SPEED.items()
    ]
    nearest = f"{CPU_FROM} tokens, "
    slower = {
        case: round(ratio["bridge"] / ratio["headscope/histogram"], 3)
        for case, ratio in times.items()
        if case.startswith(nearest) and "bridge" in ratio
    }
    larger = {
        f"{nearest}{row['threads']} threads": round(
            extra["bridge"] / extra["headscope/histogram"], 3
        )
        for row in memory
        if row["length"] == CPU_FROM and (extra := row["extra_bytes"]).get("bridge")
    }
    shares = {
        f"{name}, {row['length']} tokens": round(extra / row["output_bytes"][name], 3)
        for row in memory
        if row["length"] >= CPU_FROM
        for name, extra in _own_engines(row["extra_bytes"])
    }
    errors = [row for row in gate if row["contender"].partition("/")[0] in ENGINES]
    judged += [
        (BRIDGE_TIME if matrix_unit else BRIDGE_TIME_PLAIN).judge(slower),
        BRIDGE_MEMORY.judge(larger),
        MEMORY.judge(shares),
        GROWTH.judge(dict(_growth(memory))),
        RELATIVE.judge(
            {_where(row): row["relative"] for row in errors if row["output"] not in NO_MASS}
        ),
        ENTROPY.judge({_where(row): row["error"] for row in errors if row["output"] == "entropy"}),
    ]
    return judged


def _own_engines(extra: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """List the memory of headscope's engines."""
    for name, size in extra.items():
        if name.partition("/")[0] in ENGINES and size:
            yield name, size


def _growth(memory: Rows) -> Iterator[tuple[str, float]]:
    """Compute the exponents of memory between the two longest texts."""
    if len(memory) < 2 or memory[-1]["length"] < CPU_FROM:
        return
    shorter, longer = memory[-2:]
    before = dict(_own_engines(shorter["extra_bytes"]))
    for name, extra in _own_engines(longer["extra_bytes"]):
        if name in before:
            exponent = math.log(extra / before[name], longer["length"] / shorter["length"])
            yield f"{name}, {shorter['length']} to {longer['length']} tokens", round(exponent, 3)


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['contender']}, {row['output']}, σ {row['logit_deviation']:g}"


def judge_gpu(rows: Rows) -> list[dict[str, Any]]:
    """Judge every target of a GPU from the rows of a result, each by its worst case."""
    forward, capture, extra = {}, {}, {}
    for row in rows:
        shape = (row["batch"], row["heads"], row["size"])
        case = (
            f"{row['length']} tokens, heads {row['heads']}/{row['kv_heads']} of {row['size']}, "
            f"batch {row['batch']}"
        )
        times = row["median_ms"]
        if row["length"] >= GPU_FROM and {"forward", "forward_rows"} <= times.keys():
            forward[case] = round(times["forward_rows"] / times["forward"], 3)
        if row["length"] >= GPU_FROM and row["size"] == 128 and "triton/top8" in row["ratio"]:
            capture[case] = row["ratio"]["triton/top8"]
        if (row["length"], *shape) == (GPU_LONGEST, 1, 32, 128) and "triton/top8" in row[
            "extra_bytes"
        ]:
            extra[case] = round((row["extra_bytes"]["triton/top8"] - row["z_bytes"]) / 1e9, 3)
    return [GPU_FORWARD.judge(forward), GPU_CAPTURE.judge(capture), GPU_MEMORY.judge(extra)]


def faster_forward(rows: Rows) -> dict[str, str]:
    """Return the faster engine for every statistic by head size: our forward pass, or torch's.

    Returns
    -------
    ``fused`` or ``stock`` by size: whichever takes less time in all over texts of 8192 tokens and
    more. Sizes at which either was not measured are left out.
    """
    totals: dict[str, dict[str, float]] = {}
    for row in rows:
        times = row["median_ms"]
        if row["length"] >= GPU_FROM and {"fused/top8", "stock/top8"} <= times.keys():
            total = totals.setdefault(str(row["size"]), {"fused": 0.0, "stock": 0.0})
            for engine in total:
                total[engine] += times[f"{engine}/top8"]
    return {size: min(total, key=lambda engine: total[engine]) for size, total in totals.items()}
