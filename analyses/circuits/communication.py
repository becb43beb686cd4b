"""Communication graph: the few directions through which earlier heads steer a later head.

The query–key matrix of a head has singular directions, and the score is the exact sum of a term for
each. Where few of them make up the score, they carry a signal: what earlier heads wrote along them,
at the query or at the key. The writers with the largest signals are traced in turn. The number of
directions that share the score is compared with random bases of what the head reads; removing the
signals from what the head reads is compared with removing random vectors as long.

Source: Franco & Crovella, Sparse Attention Decomposition Applied to Circuit Tracing (2410.00340).
"""

from collections import defaultdict
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.metrics import UNITS
from headscope.analyses._measurements import score_directions
from headscope.analyses._measurements.score_terms import Scores
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    Results,
    label,
    require,
    require_prompts,
)
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.analyses.circuits import _pairs, _signal_trace
from headscope.analyses.circuits._signal_removal import CONDITIONS, lost_without
from headscope.analyses.circuits._signal_trace import SIDES, Firing, Rule, Trace
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ("lse",)
KEEP = ("q", "k", "z", "resid")
TASK = "ioi"
PROMPTS = 16
QUICK = {"depth": 1, "draws": 1}
SUPPORTS = {"hybrid"}

SOURCE = "Franco & Crovella 2410.00340"
LOGITS = ("logits", "diverging")
COUNT = ("directions", "sequential", 0)
# Directions are few where no more share the score than this part of those of a random basis.
FEW = 0.5
ENDS = ("source_layer", "source_head", "target_layer", "target_head")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    head: str = "",
    depth: Annotated[int, AtLeast(1)] = 3,
    width: Annotated[int, AtLeast(1)] = 3,
    fires: Annotated[float, Between(0, 1)] = 0.5,
    share: Annotated[float, Between(0.01, 1)] = 0.9,
    edges: Annotated[int, AtLeast(1)] = 40,
    draws: Annotated[int, AtLeast(1)] = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Trace the score of one head at the question positions of a task back to earlier heads.

    Parameters
    ----------
    capture, model, task
        Capture of the task with the kept ``q``, ``k``, ``z`` and ``resid``. The query is the last
        question position of every prompt, the key the one that the head attends to most, the first
        token left out.
    head
        The head, such as L5H1. Without it the one behind the first layer with the largest product
        of gate gradient and weight on its key.
    depth
        Levels of heads that are traced, that of the head itself being the first.
    width
        Writers of the largest signals that are followed, at the query and at the key of each head.
    fires
        Weight on its key from which on a writer is traced itself.
    share
        Share of the score that the directions of the signal sum to, the largest terms first.
    edges
        Largest edges that are returned.
    draws
        Random bases of each pair, and random vectors of each signal.
    seed
        Seed of the bootstrap over prompts and of the random directions.

    Returns
    -------
    Dataset with ``key_signal`` and ``query_signal`` (edge; what the source's signal gives the score
    of the target, at its key and at its query; 0 on prompts whose trace does not reach it),
    ``directions`` and ``directions_random`` (layer, head; how many share the score, among singular
    directions and in random bases), ``directions_needed`` and ``needed_random`` (layer, head; the
    largest that sum to ``share`` of it, which terms of both signs make few in any basis), and of
    the head itself ``margin_lost`` (of the key over the runner-up), ``attention_lost`` and
    ``metric_lost`` (condition) without the signals of its writers, with 95 % intervals over
    prompts. The metric is that of the task, of accuracy the log-probability. ``traced`` (layer,
    head) is the share of prompts whose trace reaches a head; where it is 0 the counts are NaN.
    With rotary embeddings the directions are those at the offset of a pair.
    """
    require(capture, (*NEEDS, *KEEP), "communication", ("self",))
    require_prompts(capture, len(task))
    encoded = _pairs.last_questions(model, task)
    target, rule = _pairs.chosen(capture, model, encoded, head)
    queries = _pairs.question_positions(encoded)
    scores = Scores(model, int(capture["length"].values.max()))
    tracing = Rule(depth, width, fires, share)
    traces = [
        _signal_trace.trace(scores, capture, prompt, target, int(at), tracing)
        for prompt, at in enumerate(queries)
    ]
    over = f"{label(target)} ({rule}), last question of {len(traces)} prompts of {task.name}"
    results = Results(capture, seed=seed, source=SOURCE, convention=f"{over}; {_pairs.RULE}")
    counted = _counts(capture, traces, share, draws, seed)
    results.add_means(
        ("directions", GRID, counted["singular"], "Singular directions that share the score",
         COUNT, f"(Σ|t|)² / Σt² over the terms of the singular directions; {over}"),
        ("directions_random", GRID, counted["random"], "The same in random bases", COUNT,
         f"(Σ|t|)² / Σt², mean of {draws} random bases of what the head reads at the key; {over}"),
        ("directions_needed", GRID, counted["needed"], "Singular directions that make the score",
         COUNT, f"the largest terms that sum to {share:g} of the score; {over}"),
        ("needed_random", GRID, counted["needed_random"], "The same in random bases", COUNT,
         f"the largest terms that sum to {share:g} of the score, mean of {draws} random bases"),
    )  # fmt: skip
    reached = (counted["singular"] > 0).astype(float)
    results.add_mean(
        "traced", GRID, reached, "Prompts whose trace reaches the head", *SHARE,
        convention=f"it fires with {fires:g} or more on its key, its score above 0; {over}",
    )  # fmt: skip
    shown = _strongest(traces, edges)
    for side in SIDES:
        signals = [[trace.signals.get((*pair, side), 0.0) for pair in shown] for trace in traces]
        results.add_mean(
            f"{side}_signal", ("edge",), np.reshape(signals, (len(traces), len(shown))),
            f"Signal of the source at the {side} of the target", *LOGITS,
            convention=f"along the directions that make the target's score, up to {width} writers "
            f"of a side, {depth} levels; {over}",
        )  # fmt: skip
    placed = np.array([(*source, *end) for source, end in shown]).reshape(-1, 4)
    coords: dict[str, Any] = {
        **{name: ("edge", placed[:, at]) for at, name in enumerate(ENDS)},
        "condition": list(CONDITIONS),
    }
    firings = [_own_firing(trace, target) for trace in traces]
    lost = lost_without(capture, model, encoded, scores, firings, draws, seed)
    units = {"margin": "logits", "attention": "share", "metric": UNITS[_pairs.metric(task)]}
    for name, values in lost.items():
        results.add_mean(
            f"{name}_lost", ("condition",), values, f"{name.capitalize()} lost", units[name],
            "diverging", evidence="causal",
            convention=f"taken out of what the head reads at query and key, norms following; "
            f"{draws} random vectors of what the head reads; {over}",
        )  # fmt: skip
    verdict = _few(counted, target)
    if shown:
        verdict &= _verdict(lost["margin"], label(target))
    else:
        verdict &= Verdict("not_supported", f"No earlier head writes a signal to {label(target)}.")
    note = _heads_note(results, shown)
    if pattern_substitution.reason(capture):
        note += f" No metric without the signals: {pattern_substitution.reason(capture)}."
    return results.dataset(
        coords, verdict, note,
        chosen_head=label(target),
    )  # fmt: skip


def _own_firing(trace: Trace, head: tuple[int, int]) -> Firing | None:
    """Return the firing of the head itself at its query, if its score is above 0."""
    first = trace.firings[0] if trace.firings else None
    return first if first is not None and first.head == head else None


def _counts(
    capture: xr.Dataset, traces: list[Trace], share: float, draws: int, seed: int
) -> dict[str, Array]:
    """Count the directions of every firing, mean over those of a head (prompt, layer, head)."""
    generator = np.random.default_rng(seed)
    shape = (len(traces), capture.sizes["layer"], capture.sizes["head"])
    counts: dict[str, Array] = {
        name: np.full(shape, np.nan) for name in ("singular", "random", "needed", "needed_random")
    }
    for prompt, trace in enumerate(traces):
        by_head: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
        for firing in trace.firings:
            random_terms = [
                score_directions.random_basis(firing.split, generator).terms for _ in range(draws)
            ]
            by_head[firing.head].append([
                float(score_directions.effective_number(firing.directions.terms)),
                float(score_directions.effective_number(np.stack(random_terms)).mean()),
                len(firing.chosen),
                float(np.mean([
                    len(score_directions.smallest_set(terms, share)) for terms in random_terms
                ])),
            ])  # fmt: skip
        for head, numbers in by_head.items():
            for name, value in zip(counts, np.array(numbers).mean(0), strict=True):
                counts[name][prompt, *head] = value
    return counts


def _strongest(traces: list[Trace], count: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """List the edges with the largest sums over prompts, of the larger side of each."""
    sums: dict[Any, dict[str, float]] = defaultdict(lambda: dict.fromkeys(SIDES, 0.0))
    for trace in traces:
        for (source, end, side), signal in trace.signals.items():
            sums[source, end][side] += signal
    return sorted(sums, key=lambda pair: -max(sums[pair].values()))[:count]


def _few(counted: dict[str, Array], head: tuple[int, int]) -> Verdict:
    """Conclude whether few singular directions share the head's score."""
    singular, random = (counted[name][:, *head] for name in ("singular", "random"))
    present = ~np.isnan(singular)
    if int(present.sum()) < LEAST_PROMPTS:
        return Verdict(
            "too_few",
            f"The score of {label(head)} is above 0 on {int(present.sum())} prompts, too few to "
            "count its directions.",
        )
    needed, needed_random = (
        counted[name][present, *head].mean() for name in ("needed", "needed_random")
    )
    text = (
        f"{amount(singular[present].mean())} singular directions share the score of {label(head)}, "
        f"{amount(random[present].mean())} in random bases; the signal needs {amount(needed)}, "
        f"{amount(needed_random)} there"
    )
    if bool(exceeds_zero((FEW * random - singular)[present, None]).all()):
        return Verdict("supported", f"Few directions dominate: {text}.")
    return Verdict("not_supported", f"No few directions dominate: {text}.")


def _verdict(lost: Array, head: str) -> Verdict:
    """Conclude whether the signals make the margin more than random vectors do."""
    signal, other_writes, random_vectors = (
        np.nanmean(lost, axis=0) if (~np.isnan(lost)).any() else [np.nan] * 3
    )
    text = (
        f"removing the signals lowers the margin of the key of {head} over the runner-up by "
        f"{amount(signal)} logits, removing the rest of these writes by {amount(other_writes)}, "
        f"removing random vectors of the same length by {amount(random_vectors)}"
    )
    return causal_verdict(lost[:, 0] - lost[:, 2], text, "; the signals are correlational here")


def _heads_note(results: Results, shown: list[Any]) -> str:
    """Return the names of the edges with the largest signals."""
    edges = []
    for at in range(min(3, len(shown))):
        source, end = shown[at]
        by_side = {side: float(results[f"{side}_signal"].values[at]) for side in SIDES}
        side = max(by_side, key=lambda name: by_side[name])
        edges.append(f"{label(source)} → {label(end)} {side} ({amount(by_side[side])} logits)")
    return f"Largest signals: {', '.join(edges)}." if edges else ""
