"""Benchmark of the processor: headscope beside fused and eager attention on this machine.

Times are medians of interleaved calls, so that other load on the machine meets every contender
alike; compare ratios, not milliseconds. Nothing is reported unless the numbers are right first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headscope.app.bench import contenders, layers, machine
from headscope.app.bench.clock import Call, interleave
from headscope.app.bench.cpu_bars import judge
from headscope.app.bench.footprint import Case, weigh
from headscope.app.bench.gate import compare, same_keys
from headscope.kernels.api import attend_dense
from headscope.kernels.compiled.library import library
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.kernels.memory import total
from headscope.probes.storage.dataset_file import write_text

LENGTHS = (1024, 2048, 4096)
LONG = (8192, 16384)
LONG_ROUNDS = 5
HEADS = 12
GATE_LENGTH = 769
GATE_HEADS = 4
GATE_SIGMAS = {1.0: ("sdpa", *contenders.OTHERS), 4.0: (), 16.0: contenders.OTHERS, 64.0: ()}
"""Standard deviations of the logits, and who is checked there beside headscope."""
ENTROPY_BOUND = 1e-5
WEIGHED = (
    "sdpa",
    *(f"{engine}/{column}" for engine in contenders.ENGINES for column in ("histogram", "top8")),
    *contenders.OTHERS,
)
MATRICES = {"eager": 3, "eager_statistics": 6, "bridge": 5, "bridge_cache": 5}
"""N×N matrices of every head that a contender holds at once, to leave out what cannot fit."""

Report = Callable[[str, int, int], None]


def run(
    lengths: Sequence[int] = LENGTHS,
    *,
    heads: int = HEADS,
    rounds: int = 5,
    threads: Sequence[int] | None = None,
    flex: bool = False,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Check every contender against the float64 oracle, then measure time and extra memory.

    Parameters
    ----------
    lengths
        Tokens of the text, several.
    heads
        Heads, each of size 64; causal, float32.
    rounds
        Calls of each contender that count, at most 5 from 8192 tokens on; one more warms up.
    threads
        Numbers of torch threads; None is 1 and all that this process uses, and from 8192 tokens
        on only the latter.
    flex
        Whether to compile FlexAttention as well, some ten seconds for every length.
    progress
        Called with (step, done, total).

    Returns
    -------
    ``machine``, ``setup``, ``gate``, the rows ``attention``, ``memory`` and ``model``, and
    ``bars``: what the result file holds. Milliseconds and bytes.

    Raises
    ------
    InvalidInput
        When a contender disagrees with the oracle, or an argument makes no sense.
    """
    if not lengths or min(lengths) < 1 or heads < 1 or rounds < 1:
        raise InvalidInput("lengths, heads, rounds: each must be at least 1")
    lengths = sorted(set(lengths))
    tell: Report = progress or (lambda step, done, total: None)
    allowed = torch.get_num_threads()
    counts = sorted(set(threads or (1, allowed)))
    gate = check(flex)
    load = machine.load()
    attention, model = [], []
    plan = [
        (length, count)
        for length in lengths
        for count in (counts if threads or length < LONG[0] else counts[-1:])
    ]
    try:
        for done, (length, count) in enumerate(plan):
            tell("attention", done, len(plan))
            attention.append(_time("attention", length, heads, count, rounds, flex))
        tell("attention", len(plan), len(plan))
        for done, length in enumerate(lengths):
            tell("model", done, len(lengths))
            model.append(_time("model", length, heads, counts[-1], rounds, flex))
        tell("model", len(lengths), len(lengths))
    finally:
        torch.set_num_threads(allowed)
    memory = _weigh(lengths, heads, counts[-1], tell)
    return {
        "schema": 2,
        "headscope": version("headscope"),
        "machine": {**machine.describe(), "load_before": load, "load_after": machine.load()},
        "setup": {
            "heads": heads,
            "size": contenders.SIZE,
            "batch": 1,
            "causal": True,
            "dtype": "float32",
            "columns": {name: list(added) for name, added in contenders.COLUMNS.items()},
            "engines": {name: str(engine) for name, engine in contenders.ENGINES.items()},
            "compiled": contenders.compiled(),
            "matrix_unit": library().pack is not None,
            "rounds": rounds,
            "rounds_long": min(rounds, LONG_ROUNDS),
            "time": (
                "median milliseconds of interleaved calls in one process; those that keep N×N "
                "matrices take turns with the first apart from the others, and their ratios are "
                "to its calls there"
            ),
            "memory": "bytes of peak resident memory beyond the inputs, a fresh process a call",
            "bridge": (
                "the attention layer of a TransformerBridge, given q, k and v in place of its "
                "projections, with hook_pattern cached: the same q, k, v in and z out as "
                "headscope, which returns the statistics of the column histogram"
            ),
            "model": (
                "one whole layer of GPT-2 with random weights; capture has the statistics of the "
                "column histogram, bridge_cache the pattern only"
            ),
        },
        "gate": gate,
        "attention": attention,
        "memory": memory,
        "model": model,
        "bars": judge(gate, attention, memory),
    }


def check(flex: bool = False) -> list[dict[str, Any]]:
    """Compare every contender with the dense float64 oracle on a short text.

    Parameters
    ----------
    flex
        Whether FlexAttention is one of them, where it can be compiled.

    Returns
    -------
    A row for every contender, size of logits and output: the largest error and what is allowed.

    Raises
    ------
    HeadscopeError
        When one is off.
    """
    ours = tuple(f"{engine}/top8" for engine in contenders.ENGINES)
    rows = []
    for sigma, others in GATE_SIGMAS.items():
        q, k, v = contenders.attention_inputs(GATE_LENGTH, GATE_HEADS, sigma)
        request = contenders.request(GATE_LENGTH)
        expected = attend_dense(q, k, v, replace(request, stats=(*request.stats, "pattern")))
        # Logits of this size are themselves rounded to float32.
        rounding = 1e-6 + float(expected["lse"].abs().max()) * 2**-22
        calls = {name: contenders.make(name, q, k, v) for name in (*ours, *others)}
        if flex and sigma == 1.0:
            for name in contenders.FLEX:
                # What cannot be compiled is not run; the result says why.
                with contextlib.suppress(HeadscopeError):
                    calls[name] = contenders.make(name, q, k, v)
        for name, call in calls.items():
            for output, values in call().items():
                # What eager attention loses in float32 is its own affair; ours is held to the bar.
                entropy = ENTROPY_BOUND if name in ours else 1000 * ENTROPY_BOUND
                bound = entropy if output == "entropy" else rounding
                right = expected[output]
                if output == "topk_key":
                    right, values = expected["topk"], same_keys(values, expected["pattern"])
                rows.append(compare(name, output, sigma, values, right, bound))
    rows.append(_check_model())
    return rows


def _check_model() -> dict[str, Any]:
    pattern = layers.model_call("bridge_cache", GATE_LENGTH, 2)()[0].double()
    captured = layers.model_call("capture", GATE_LENGTH, 2)()
    entropy = torch.from_numpy(captured["entropy"].values[0, 0])
    expected = -torch.xlogy(pattern, pattern).sum(dim=-1)
    # Two implementations of the whole model in float32, not one of attention.
    return compare("capture", "entropy", 1.0, entropy, expected, 1e-4)


def _time(
    group: str, length: int, heads: int, threads: int, rounds: int, flex: bool
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    names, absent = _fitting(group, length, heads)
    calls = {}
    for name in names:
        make = contenders.attention_call if group == "attention" else layers.model_call
        calls[name] = make(name, length, heads)
    if group == "attention":
        for name in contenders.FLEX:
            if not flex:
                absent[name] = "not asked for: --flex compiles it, which takes some ten seconds"
                continue
            try:
                calls[name] = contenders.attention_call(name, length, heads)
            except HeadscopeError as reason:
                absent[name] = str(reason)
    return {
        "length": length,
        "threads": threads,
        **_interleave(calls, min(rounds, LONG_ROUNDS) if length >= LONG[0] else rounds),
        "not_run": absent,
        "load": machine.load(),
    }


def _interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, Any]:
    """Time those that keep N×N matrices apart, each beside the first.

    They take gigabytes and give them back, and whoever comes next pays for fresh memory.
    """
    first = next(iter(calls))
    light = {name: call for name, call in calls.items() if name not in MATRICES}
    heavy = {name: call for name, call in calls.items() if name in MATRICES}
    timed = interleave(light, rounds)
    if heavy:
        more = interleave({first: calls[first], **heavy}, rounds)
        for field in ("median_ms", "ratio", "spread_ms"):
            timed[field] |= {name: more[field][name] for name in heavy}
        timed["apart"] = {"names": list(heavy), "ratio_to_ms": more["median_ms"][first]}
    return timed


def _weigh(lengths: Sequence[int], heads: int, threads: int, tell: Report) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cases: list[Case] = []
    for length in lengths:
        absent: dict[str, str] = {}
        for group, weighed in (("attention", WEIGHED), ("model", layers.MODEL)):
            names, left_out = _fitting(group, length, heads)
            absent |= {name: why for name, why in left_out.items() if name in weighed}
            cases += [(group, name, length, heads, threads) for name in names if name in weighed]
        rows.append({"length": length, "threads": threads, "not_run": absent})
    extra: dict[int, dict[str, int | None]] = {length: {} for length in lengths}
    output: dict[int, dict[str, int]] = {length: {} for length in lengths}
    for done, (case, weight) in enumerate(zip(cases, weigh(cases), strict=True)):
        tell("memory", done + 1, len(cases))
        _, name, length, _, _ = case
        extra[length][name] = None if weight is None else weight[0]
        if weight is not None and weight[1] is not None:
            output[length][name] = weight[1]
    for row in rows:
        row |= {"extra_bytes": extra[row["length"]], "output_bytes": output[row["length"]]}
    return rows


def _fitting(group: str, length: int, heads: int) -> tuple[list[str], dict[str, str]]:
    names = contenders.ATTENTION if group == "attention" else layers.MODEL
    fitting, absent = [], {}
    for name in names:
        need = MATRICES.get(name, 0) * heads * length**2 * 4
        if need > 0.6 * total():
            absent[name] = f"needs about {need / 1e9:.0f} GB"
        else:
            fitting.append(name)
    return fitting, absent


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON, whole or not at all.

    Raises
    ------
    HeadscopeError
        When the file cannot be written.
    """
    write_text(path, json.dumps(result, indent=1) + "\n")
