"""Why a head attends: its score, split into what was written at the query and at the key.

The score of a query and a key, before the softmax, is a sum over pairs: what the embeddings, each
earlier head, each MLP and the biases give at the query, against what they give at the key, norms'
scales frozen, queries and keys turned by their positions. The terms sum to the score. Beside the
largest terms stands what is lost when the head no longer reads that write: in the score, with the
norms following, in the attention, and in the task's metric.

Source: Kamath et al., Tracing Attention Computation Through Feature Interactions (2025).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation, pattern_substitution, read_removal
from headscope.analyses._interventions.metrics import UNITS
from headscope.analyses._interventions.read_removal import Removal
from headscope.analyses._measurements.score_terms import Scores, Source, Split
from headscope.analyses._runtime.options import AtLeast
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
from headscope.analyses.circuits import _pairs
from headscope.kernels.formatting import amount, percent
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

NEEDS = ("lse",)
KEEP = ("q", "k", "z", "resid")
TASK = "ioi"
PROMPTS = 16
QUICK = {"edges": 2, "draws": 1}
SUPPORTS = {"hybrid"}

SOURCE = "Kamath et al. 2025, QK attribution"
SIDES = ("query", "key")
OTHERS, DRAWN = "all others", "others as long"
LOGITS = ("logits", "diverging")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    head: str = "",
    sources: Annotated[int, AtLeast(1)] = 8,
    edges: Annotated[int, AtLeast(1)] = 6,
    draws: Annotated[int, AtLeast(1)] = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Split the scores of one head at the asked positions of a task.

    Parameters
    ----------
    capture, model, task
        Capture of the task with the kept ``q``, ``k``, ``z`` and ``resid``. The query is the last
        asked position of every prompt, the key the one that the head attends to most, the first
        token left out.
    head
        The head, such as L5H1. Without it the one behind the first layer with the largest product
        of gate gradient and weight on its key.
    sources
        Sources at the query and at the key that are shown by themselves.
    edges
        Largest terms of a source at one side, over all of the other, that are checked causally.
    draws
        Other sources, drawn at random and scaled to the same length, that each is held against.
    seed
        Seed of the bootstrap over prompts and of the draws.

    Returns
    -------
    Dataset with ``query_term`` and ``key_term`` (layer, head; what an earlier head gives the score
    at the query, at the key), ``pair_term`` (one, other; sources at the query against sources at
    the key, which sum to the score), ``score`` and ``weight`` of the pair, and of the largest terms
    (condition) ``predicted`` (the term), ``score_lost``, ``attention_lost`` and ``metric_lost``
    without this write, with 95 % intervals over prompts. The soft cap of a model comes after the
    score, a position bias or ALiBi beside it: neither is in the terms.
    """
    require(capture, (*NEEDS, *KEEP), "qk_attribution", ("self",))
    require_prompts(capture, len(task))
    encoded = ablation.encode_task(model, task)
    target, rule = _pairs.chosen(capture, model, encoded, head)
    queries = _pairs.asked(encoded)
    places = [
        (int(at), *_pairs.attended(_pairs.weights_at(capture, prompt, target[0], at)[target[1]]))
        for prompt, at in enumerate(queries)
    ]
    scores = Scores(model, int(capture["length"].values.max()))
    splits = [
        scores.split(capture, target, prompt, query, key)
        for prompt, (query, key, _) in enumerate(places)
    ]
    terms = np.stack([split.terms for split in splits])
    names = splits[0].sources

    over = f"{label(target)} ({rule}), last question of {len(terms)} prompts of {task.name}"
    results = Results(
        capture, seed=seed, source=SOURCE,
        convention=f"{over}; {_pairs.RULE}; scales of norms frozen",
    )  # fmt: skip
    sides = dict(zip(SIDES, (terms.sum(2), terms.sum(1)), strict=True))
    results.add_means(
        *((f"{side}_term", GRID, _on_grid(values, names, capture),
           f"Score from what the head wrote at the {side}", LOGITS)
          for side, values in sides.items()),
        ("pair_term", ("one", "other"), _shown(terms, sides, sources)[0],
         "Score from what was written at the query (rows) and the key", LOGITS),
        ("score", (), terms.sum((1, 2)), "Score of query and key", LOGITS),
        ("weight", (), np.array([place[2] for place in places]), "Attention to the key", SHARE),
    )  # fmt: skip
    coords: dict[str, Any] = _named(terms, sides, sources, names)
    chosen = _largest(sides, names, edges)
    lost = _lost(capture, model, encoded, scores, target, places, splits, chosen, draws, seed)
    signs = np.sign([sides[side][:, at].mean() for side, at in chosen])
    coords["condition"] = [*(f"{names[at]} at the {side}" for side, at in chosen), DRAWN]
    predicted = np.stack([sides[side][:, at] for side, at in chosen], axis=1)
    missing = np.full((len(terms), 1), np.nan)
    results.add_mean(
        "predicted", ("condition",), np.concatenate((predicted, missing), axis=1),
        "Term of this write", *LOGITS,
    )  # fmt: skip
    units = {"score": "logits", "attention": "share", "metric": UNITS[task.metric]}
    for name, values in lost.items():
        own, drawn = values[..., 0], values[..., 1:].mean(2)
        held = (drawn * signs).mean(1, keepdims=True)
        results.add_mean(
            f"{name}_lost", ("condition",), np.concatenate((own, held), axis=1),
            f"{name.capitalize()} lost without this write", units[name], "diverging",
            evidence="causal", convention=f"{over}; taken out of what the head reads at this side, "
            f"norms following; {DRAWN}: {draws} other sources in its place, scaled to its length, "
            "mean over the edges, signed as their terms",
        )  # fmt: skip
    largest = np.unravel_index(np.abs(terms.mean(0)).argmax(), terms.shape[1:])
    share = terms.mean(0)[largest] / terms.sum((1, 2)).mean()
    note = (
        f"{label(target)} attends with weight {amount(float(results['weight'].values))}; the "
        f"largest term, {names[largest[0]]} at the query against {names[largest[1]]} at the key, "
        f"is {percent(float(share))} of its score."
    )
    reason = pattern_substitution.reason(capture)
    if reason:
        note += f" No metric without the writes: {reason}."
    return results.dataset(
        coords, _verdict(lost, signs, coords["condition"][0], label(target)), note,
        chosen_head=label(target), pairs=[list(place[:2]) for place in places],
    )  # fmt: skip


def _on_grid(values: Array, names: tuple[Source, ...], capture: xr.Dataset) -> Array:
    """Lay the values of heads (prompt, source) over (prompt, layer, head); NaN elsewhere."""
    grid = np.full((len(values), capture.sizes["layer"], capture.sizes["head"]), np.nan)
    for at, source in enumerate(names):
        if source.kind == "head":
            grid[:, source.layer, source.head] = values[:, at]
    return grid


def _shown(terms: Array, sides: dict[str, Array], count: int) -> tuple[Array, list[list[int]]]:
    """Join all but the largest sources of both sides into one (prompt, one, other)."""
    orders = []
    for axis, values in enumerate(sides.values(), 1):
        order = np.argsort(-np.abs(values.mean(0)), kind="stable")
        first, rest = order[:count], order[count:]
        parts = [np.take(terms, first, axis), np.take(terms, rest, axis).sum(axis, keepdims=True)]
        terms = np.concatenate(parts, axis)
        orders.append(first.tolist())
    return terms, orders


def _named(
    terms: Array, sides: dict[str, Array], count: int, names: tuple[Source, ...]
) -> dict[str, list[str]]:
    """Name the rows and columns of the shown terms."""
    _, orders = _shown(terms, sides, count)
    return {
        dim: [*(str(names[at]) for at in order), OTHERS]
        for dim, order in zip(("one", "other"), orders, strict=True)
    }


def _largest(
    sides: dict[str, Array], names: tuple[Source, ...], count: int
) -> list[tuple[str, int]]:
    """List the sides and sources with the largest mean terms; biases cannot be taken out."""
    found = [
        (side, at) for side in sides for at, source in enumerate(names) if source.kind != "bias"
    ]
    found.sort(key=lambda edge: -abs(sides[edge[0]][:, edge[1]].mean()))
    return found[:count]


def _lost(
    capture: xr.Dataset, model: Model, task: EncodedTask, scores: Scores, head: tuple[int, int],
    places: list[tuple[int, int, float]], splits: list[Split], chosen: list[tuple[str, int]],
    draws: int, seed: int,
) -> dict[str, Array]:  # fmt: skip
    """Return what score, attention and metric lose without each write (prompt, edge, one + draw).

    After the write itself come other sources of the same position, scaled to its length.
    """
    generator = np.random.default_rng(seed)
    names = splits[0].sources
    shape = (len(splits), len(chosen), 1 + draws)
    lost = {"score": np.zeros(shape), "attention": np.zeros(shape)}
    rows = []
    for prompt, (query, key, weight) in enumerate(places):
        removals = []
        for side, at in chosen:
            place = query if side == "query" else key
            vector = scores.vector(capture, prompt, place, names[at])
            others = [one for one in range(len(names) - 1) if one != at]
            taken = [vector]
            for one in generator.choice(others, draws):
                other = scores.vector(capture, prompt, place, names[one])
                taken.append(other * (vector.norm() / other.norm().clamp_min(1e-30)))
            removals += [Removal(**{side: each}) for each in taken]
        without, weights = read_removal.rows_without(
            model, task.ids[prompt], head, (query, key), removals
        )
        lost["score"][prompt] = (splits[prompt].score - without).reshape(shape[1:])
        lost["attention"][prompt] = (weight - weights[:, key]).reshape(shape[1:])
        rows.append(weights)
    if not pattern_substitution.reason(capture):
        queries = np.array([place[0] for place in places])
        moved = read_removal.metric_with(model, task, task.metric, head, queries, rows)
        lost["metric"] = ablation.evaluate(model, task)[:, None, None] - moved.reshape(shape)
    return lost


def _verdict(lost: dict[str, Array], signs: Array, first: str, head: str) -> Verdict:
    """Conclude whether attention goes where the terms say, more than with other writes."""
    moved = lost["attention"] * signs[:, None]
    own, drawn = moved[..., 0], moved[..., 1:].mean(2)
    text = (
        f"without the writes of the largest terms ({first} first) {head} attends "
        f"{amount(own.mean())} less in the direction of the term, without others as long "
        f"{amount(drawn.mean())}"
    )
    return causal_verdict(own.mean(1) - drawn.mean(1), text, "; the terms are correlational here")
