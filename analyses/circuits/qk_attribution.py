"""Why a head attends: its score, split into what was written at the query and at the key.

The score of a query and a key, before the softmax, is a sum over pairs: what the embeddings, each
earlier head, each MLP and the biases give at the query, against what they give at the key, norms'
scales frozen, queries and keys turned by their positions. The terms sum to the score. Attention
depends only on how far a key's score exceeds others', so the margin over the runner-up is split,
too. A sparse autoencoder on the head outputs of a layer splits its heads further, into features.
For the largest parts of the margin, the causal check removes that write from what the head reads
and measures the loss of the margin (with the norms recomputed), of the attention, and of the task's
metric.

Source: Kamath et al., Tracing Attention Computation Through Feature Interactions (2025).
"""

from typing import Annotated

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import ablation, pattern_substitution, read_removal
from headscope.analyses._interventions.metrics import UNITS
from headscope.analyses._interventions.read_removal import Removal
from headscope.analyses._measurements.score_sources import Source
from headscope.analyses._measurements.score_terms import Scores
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
from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.circuits import _feature_sources, _pairs
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

# Places of sources by side, the largest margin first.
Orders = dict[str, NDArray[np.int64]]

NEEDS = ("lse",)
KEEP = ("q", "k", "z", "resid")
TASK = "ioi"
PROMPTS = 16
QUICK = {"edges": 2, "draws": 1}
SUPPORTS = {"hybrid"}

SOURCE = "Kamath et al. 2025, QK attribution"
# Over which axis of the terms (prompt, query source, key source) a side's are summed.
AXES = {"query": 2, "key": 1}
OTHERS, DRAWN = "all others", "others as long"
# Two that write to the stream, and the biases.
LEAST_SOURCES = 3
LOGITS = ("logits", "diverging")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    sae: SparseAutoencoder | None = None,
    *,
    head: str = "",
    sources: Annotated[int, AtLeast(1)] = 8,
    features: Annotated[int, AtLeast(1)] = 32,
    edges: Annotated[int, AtLeast(1)] = 6,
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Split the scores of one head at the question positions of a task.

    Parameters
    ----------
    capture, model, task
        Capture of the task with the kept ``q``, ``k``, ``z`` and ``resid``. The query is the last
        question position of every prompt, the key the one that the head attends to most, the first
        token left out.
    sae
        Autoencoder on head outputs of an earlier layer, such as `saelens.load` reads: the heads
        that it reads are then split into its features, its bias and its error.
    head
        The head, such as L5H1. Without it the one behind the first layer with the largest product
        of gate gradient and weight on its key.
    sources
        Sources at the query and at the key that are shown by themselves.
    features
        Features of the autoencoder that are sources by themselves, those that write most at the
        queries, keys and runners-up; the others are one source.
    edges
        Largest margins of a source at one side, over all of the other, that are checked causally.
    draws
        Other sources, drawn at random and scaled to the same length, that each is compared with.
    seed
        Seed of the bootstrap over prompts and of the draws.

    Returns
    -------
    Dataset with ``query_term`` and ``key_term`` (layer, head; what an earlier head gives the score
    at the query, at the key; NaN where an autoencoder splits it) and ``pair_term`` (one, other;
    sources at the query against sources at the key, which sum to the score); the same of the score
    less that of the runner-up, the most attended of all other keys: ``query_margin``,
    ``key_margin``, ``pair_margin``. ``score``, ``margin`` and ``weight`` of the key, ``key_weight``
    (layer, head; the weight of every head on its own key), and of the largest margins of one source
    (condition) ``predicted`` (its margin), ``margin_lost``, ``attention_lost`` and ``metric_lost``
    without this write, with 95 % intervals over prompts. The metric is that of the task, of
    accuracy the log-probability. The soft cap of a model comes after the score, a position bias or
    ALiBi beside it: neither is in the terms.
    """
    require(capture, (*NEEDS, *KEEP), "qk_attribution", ("self",))
    require_prompts(capture, len(task))
    encoded = _pairs.last_questions(model, task)
    target, rule = _pairs.chosen(capture, model, encoded, head)
    pairs = _pairs.of_head(capture, encoded, target)
    parts = None
    if sae is not None:
        _feature_sources.check(sae, model, target[0])
        positions = torch.tensor([[pair.query, pair.key, pair.rival] for pair in pairs])
        strongest = _feature_sources.strongest(sae, capture, positions, features)
        parts = _feature_sources.FeatureParts(sae, model, strongest)
    scores = Scores(model, int(capture["length"].values.max()), parts)
    if len(scores.sources(target[0])) < LEAST_SOURCES:
        raise NotApplicable(
            f"head: {label(target)} of {model.name} reads the embedding alone, so there is no "
            "other write to hold it against; name a head of a later layer"
        )
    terms, rivals = (
        np.stack([
            scores.split(capture, target, prompt, pair.query, getattr(pair, end)).terms
            for prompt, pair in enumerate(pairs)
        ])
        for end in ("key", "rival")
    )  # fmt: skip
    margins, names = terms - rivals, scores.sources(target[0])

    over = f"{label(target)} ({rule}), last question of {len(pairs)} prompts of {task.name}"
    results = Results(
        capture, seed=seed, source=SOURCE,
        convention=f"{over}; {_pairs.RULE}; scales of norms frozen",
    )  # fmt: skip
    sides = {side: margins.sum(axis) for side, axis in AXES.items()}
    orders = {side: np.argsort(-np.abs(sides[side].mean(0)), kind="stable") for side in AXES}
    for kind, values, title in (
        ("term", terms, "Score"), ("margin", margins, "Margin over the runner-up"),
    ):  # fmt: skip
        results.add_means(
            *((f"{side}_{kind}", GRID, _on_grid(values.sum(axis), names, capture),
               f"{title} from what the head wrote at the {side}", LOGITS)
              for side, axis in AXES.items()),
            (f"pair_{kind}", ("one", "other"), _joined(values, orders, sources),
             f"{title} from what was written at the query (rows) and the key", LOGITS),
        )  # fmt: skip
    results.add_means(
        ("score", (), terms.sum((1, 2)), "Score of query and key", LOGITS),
        ("margin", (), margins.sum((1, 2)), "Score less that of the runner-up", LOGITS),
        ("weight", (), np.array([pair.weight for pair in pairs]), "Attention to the key", SHARE),
        (
            "key_weight",
            GRID,
            _pairs.key_weights(capture, encoded),
            "Attention of every head to its own key",
            SHARE,
        ),
    )
    edges_shown = _largest(sides, names, edges)
    lost = _lost(capture, model, encoded, scores, target, pairs, edges_shown, draws, seed)
    signs = np.sign([sides[side][:, at].mean() for side, at in edges_shown])
    predicted = np.stack([sides[side][:, at] for side, at in edges_shown], axis=1)
    missing = np.full((len(pairs), 1), np.nan)
    results.add_mean(
        "predicted", ("condition",), np.concatenate((predicted, missing), axis=1),
        "Margin from this write", *LOGITS,
    )  # fmt: skip
    _add_lost(results, lost, signs, UNITS[_pairs.metric(task)], f"{over}; {draws} draws")
    conditions = [*(f"{names[at]} at the {side}" for side, at in edges_shown), DRAWN]
    return results.dataset(
        {**_named(orders, sources, names), "condition": conditions},
        _verdict(lost["margin"], signs, conditions[0], label(target)),
        _note(results, margins, names, label(target), pattern_substitution.reason(capture)),
        chosen_head=label(target), pairs=[[pair.query, pair.key, pair.rival] for pair in pairs],
    )  # fmt: skip


def _add_lost(
    results: Results, lost: dict[str, Array], signs: Array, metric: str, over: str
) -> None:
    """Add what is lost without each write, and with others in its place (prompt, edge, draw)."""
    for name, units in (("margin", "logits"), ("attention", "share"), ("metric", metric)):
        if name not in lost:
            continue
        own_write, other_writes = lost[name][..., 0], lost[name][..., 1:].mean(2)
        signed = (other_writes * signs).mean(1, keepdims=True)
        results.add_mean(
            f"{name}_lost", ("condition",), np.concatenate((own_write, signed), axis=1),
            f"{name.capitalize()} lost without this write", units, "diverging", evidence="causal",
            convention=f"{over}; taken out of what the head reads for its query, or for its keys "
            f"everywhere, norms following; {DRAWN}: other sources in its place, scaled to its "
            "length, mean over the edges, signed as their margins",
        )  # fmt: skip


def _note(
    results: Results, margins: Array, names: tuple[Source, ...], head: str, reason: str
) -> str:
    """Describe where the head attends, and which pair of sources prefers the key."""
    mean = margins.mean(0)
    best = np.unravel_index(np.abs(mean).argmax(), mean.shape)
    of_query, of_key = (names[at] for at in best)
    note = (
        f"{head} attends with weight {amount(float(results['weight'].values))}; of the "
        f"{amount(float(mean.sum()))} logits by which the key exceeds the runner-up, {of_query} "
        f"at the query against {of_key} at the key gives {amount(float(mean[best]))}."
    )
    return f"{note} No metric without the writes: {reason}." if reason else note


def _on_grid(values: Array, names: tuple[Source, ...], capture: xr.Dataset) -> Array:
    """Arrange the values of heads (prompt, source) as (prompt, layer, head); NaN elsewhere."""
    grid = np.full((len(values), capture.sizes["layer"], capture.sizes["head"]), np.nan)
    for at, source in enumerate(names):
        if source.kind == "head":
            grid[:, source.layer, source.head] = values[:, at]
    return grid


def _joined(terms: Array, orders: Orders, count: int) -> Array:
    """Join all but the first sources of both sides into one (prompt, one, other)."""
    for side, order in orders.items():
        # One side less is one axis less: that of the query comes first.
        axis = 3 - AXES[side]
        first, rest = order[:count], order[count:]
        parts = [np.take(terms, first, axis), np.take(terms, rest, axis).sum(axis, keepdims=True)]
        terms = np.concatenate(parts, axis)
    return terms


def _named(orders: Orders, count: int, names: tuple[Source, ...]) -> dict[str, list[str]]:
    """Return the names of the rows and columns of the shown terms."""
    return {
        dim: [*(str(names[at]) for at in order[:count]), OTHERS]
        for dim, order in zip(("one", "other"), orders.values(), strict=True)
    }


def _largest(
    sides: dict[str, Array], names: tuple[Source, ...], count: int
) -> list[tuple[str, int]]:
    """List the sides and sources with the largest mean terms; biases cannot be taken out."""
    edges = [
        (side, at) for side in sides for at, source in enumerate(names) if source.kind != "bias"
    ]
    edges.sort(key=lambda edge: -abs(sides[edge[0]][:, edge[1]].mean()))
    return edges[:count]


def _lost(
    capture: xr.Dataset, model: Model, task: EncodedTask, scores: Scores, head: tuple[int, int],
    pairs: list[_pairs.Pair], chosen: list[tuple[str, int]], draws: int, seed: int,
) -> dict[str, Array]:  # fmt: skip
    """Return what margin, attention and metric lose without each write (prompt, edge, 1 + draws).

    After the write itself come other sources in its place, scaled to its length.
    """
    generator = np.random.default_rng(seed)
    names = scores.sources(head[0])
    shape = (len(pairs), len(chosen), 1 + draws)
    lost = {"margin": np.zeros(shape), "attention": np.zeros(shape)}
    rows = []
    for prompt, pair in enumerate(pairs):
        removals = [Removal()]
        for side, at in chosen:
            positions = pair.query if side == "query" else slice(len(task.ids[prompt]))
            vector = scores.vector(capture, prompt, positions, names[at])
            vectors = [vector]
            candidates = [index for index in range(len(names) - 1) if index != at]
            for index in generator.choice(candidates, draws):
                replacement = scores.vector(capture, prompt, positions, names[index])
                vectors.append(replacement * (vector.norm() / replacement.norm().clamp_min(1e-30)))
            removals += [Removal(**{side: vector}) for vector in vectors]
        scores_without, weights = read_removal.rows_without(
            model, task.ids[prompt], head, pair.query, removals
        )
        margin = scores_without[:, pair.key] - scores_without[:, pair.rival]
        for name, values in (("margin", margin), ("attention", weights[:, pair.key])):
            lost[name][prompt] = (values[0] - values[1:]).reshape(shape[1:])
        rows.append(weights[1:])
    if not pattern_substitution.reason(capture):
        metric, queries = _pairs.metric(task), _pairs.question_positions(task)
        moved = read_removal.metric_with(model, task, metric, head, queries, rows)
        intact = ablation.evaluate(model, task, metric=metric)
        lost["metric"] = intact[:, None, None] - moved.reshape(shape)
    return lost


def _verdict(lost: Array, signs: Array, first: str, head: str) -> Verdict:
    """Conclude whether the margin goes where the terms say, more than with other writes."""
    moved = lost * signs[:, None]
    own_write, other_writes = moved[..., 0], moved[..., 1:].mean(2)
    text = (
        f"removing the writes of the largest terms ({first} before others) moves the margin of the "
        f"key of {head} by {amount(own_write.mean())} logits the way that the terms say, removing "
        f"other writes of the same length by {amount(other_writes.mean())}"
    )
    return causal_verdict(
        own_write.mean(1) - other_writes.mean(1), text, "; the terms are correlational here"
    )
