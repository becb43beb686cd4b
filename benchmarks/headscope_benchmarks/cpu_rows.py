"""What is measured on a CPU: errors of every baseline, times, and memory."""

# The bridge needs TransformerLens, which a machine that measures its GPU need not have.

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headscope.kernels.api import memory
from headscope_benchmarks import baselines, gate, machine
from headscope_benchmarks.baselines import ATTENTION, ENGINES, FLEX, MODEL, OTHERS
from headscope_benchmarks.peak_memory import Case, measure_peaks
from headscope_benchmarks.shapes import cpu_shape
from headscope_benchmarks.timing import Call, Report, interleave

LONG, LONG_ROUNDS = 8192, 5
GATE_LENGTH, GATE_HEADS = 769, 4
GATE_SIGMAS = {1.0: ("sdpa", *OTHERS), 4.0: (), 16.0: OTHERS, 64.0: ()}
"""Standard deviations of the logits, and who is checked there beside headscope."""
ENTROPY_BOUND = 1e-5
NOT_COMPILED = "not asked for: --flex compiles it, which takes some ten seconds"
WEIGHED = (
    "sdpa",
    *(f"{engine}/{column}" for engine in ENGINES for column in ("histogram", "top8")),
    *OTHERS,
)
"""Whose memory is measured, beside models."""
MATRICES = {"eager": 3, "eager_statistics": 6, "bridge": 5, "bridge_cache": 5}
"""N×N matrices of every head that a baseline holds at once, to leave out what cannot fit."""


def check(flex: bool = False) -> list[dict[str, Any]]:
    """Compare every baseline with the dense float64 oracle on a short text.

    Parameters
    ----------
    flex
        Whether FlexAttention is one of them, where it can be compiled.

    Returns
    -------
    A row for every baseline, size of logits and output: the largest error and what is allowed.

    Raises
    ------
    HeadscopeError
        When one is off.
    """
    from headscope_benchmarks.bridge import model_call

    names = tuple(f"{engine}/top8" for engine in ENGINES)
    rows = []
    for sigma, others in GATE_SIGMAS.items():
        tensors = cpu_shape(GATE_LENGTH, GATE_HEADS).inputs(sigma=sigma)
        expected = gate.oracle(*tensors)
        # Logits of this size are themselves rounded to float32.
        rounding = 1e-6 + float(expected["lse"].abs().max()) * 2**-22

        def allowed(name: str, output: str, rounding: float = rounding) -> float:
            if output != "entropy":
                return rounding
            # What eager attention loses in float32 is its own affair; ours is held to the bar.
            return ENTROPY_BOUND if name in names else 1000 * ENTROPY_BOUND

        calls = {name: baselines.make(name, *tensors) for name in (*names, *others)}
        if flex and sigma == 1.0:
            # What cannot be compiled is not run; the rows of times say why.
            calls |= baselines.prepare(FLEX, *tensors)[0]
        rows += gate.check(calls, expected, sigma, allowed)
    pattern = model_call("bridge_cache", GATE_LENGTH, 2)()[0][0].double()
    captured = model_call("capture", GATE_LENGTH, 2)()
    entropy = torch.from_numpy(captured["entropy"].values[0, 0])
    right = -torch.xlogy(pattern, pattern).sum(dim=-1)
    # Two implementations of the whole model in float32, not one of attention.
    return [*rows, gate.compare("capture", "entropy", 1.0, entropy, right, 1e-4)]


def measure_times(
    group: str, length: int, heads: int, threads: int, rounds: int, flex: bool
) -> dict[str, Any]:
    """Time ``attention`` or a ``model`` of one layer at one length, every baseline in turn.

    Returns
    -------
    A row for the result file: milliseconds, ratios, and why some were not run.
    """
    torch.set_num_threads(threads)
    names, absent = fitting(group, length, heads)
    if group == "model":
        from headscope_benchmarks.bridge import model_call

        calls = {name: model_call(name, length, heads) for name in names}
    else:
        calls = {name: baselines.attention_call(name, length, heads) for name in names}
        if flex:
            compiled, reasons = baselines.prepare(FLEX, *cpu_shape(length, heads).inputs())
            calls |= compiled
            absent |= reasons
        else:
            absent |= dict.fromkeys(FLEX, NOT_COMPILED)
    return {
        "length": length,
        "threads": threads,
        **_interleave(calls, min(rounds, LONG_ROUNDS) if length >= LONG else rounds),
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


def measure_memory(
    lengths: Sequence[int], heads: int, threads: int, progress: Report
) -> list[dict[str, Any]]:
    """Measure the memory of one call of every baseline, a row for every length."""
    functions = {
        "attention": ("headscope_benchmarks.baselines:attention_call", WEIGHED),
        "model": ("headscope_benchmarks.bridge:model_call", MODEL),
    }
    rows: dict[int, dict[str, Any]] = {}
    cases: list[Case] = []
    for length in lengths:
        absent: dict[str, str] = {}
        for group, (function, weighed) in functions.items():
            names, reasons = fitting(group, length, heads)
            absent |= {name: why for name, why in reasons.items() if name in weighed}
            cases += [(function, name, length, heads, threads) for name in names if name in weighed]
        rows[length] = {"length": length, "threads": threads, "not_run": absent}
        rows[length] |= {"extra_bytes": {}, "output_bytes": {}}
    for done, (case, sizes) in enumerate(zip(cases, measure_peaks(cases), strict=True)):
        progress("memory", done + 1, len(cases))
        extra, outputs = sizes or (None, None)
        rows[case[2]]["extra_bytes"][case[1]] = extra
        if outputs is not None:
            rows[case[2]]["output_bytes"][case[1]] = outputs
    return list(rows.values())


def fitting(group: str, length: int, heads: int) -> tuple[list[str], dict[str, str]]:
    """List the baselines of a group whose matrices fit into this machine, and why others do not."""
    names, absent = [], {}
    for name in ATTENTION if group == "attention" else MODEL:
        need = MATRICES.get(name, 0) * heads * length**2 * 4
        if need > 0.6 * memory.total():
            absent[name] = f"needs about {need / 1e9:.0f} GB"
        else:
            names.append(name)
    return names, absent
