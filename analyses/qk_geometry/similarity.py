"""Similarity of heads: which attend to the same keys, and which write the same things.

Two heads are near when the Jensen–Shannon divergence of their rows is small, and similar in effect
when their outputs in the residual stream point the same way; the two need not agree. The heads are
grouped by the first, with the silhouette that says whether there are groups at all. The causal
number: how far the output moves when heads get the pattern of the head nearest to them, and when
they get that of a random other head.

Sources: What Does BERT Look At?, for the divergence; EfficientViT, for the similarity of the heads
of one layer.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.causal_check import Head
from headscope.analyses._measurements import qk_rows
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import Results, heads, label, labels, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses.qk_geometry import _signatures
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.attention import projections
from headscope.probes.models.model import Model

NEEDS = ("lse",)
SUPPORTS = {"encoder", "hybrid"}
KEEP = ("q", "k", "z")

CLARK = "What Does BERT Look At?"
CONDITIONS = ("pattern of the nearest head", "pattern of a random other head")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    clusters: Annotated[int, AtLeast(2)] = 6,
    queries: Annotated[int, AtLeast(2)] = 96,
    skip: Annotated[int, AtLeast(1)] = 8,
    swapped: Annotated[int, AtLeast(1)] = 4,
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Compare every two heads by their rows and by their outputs, and group them.

    Parameters
    ----------
    capture, model
        Capture with the kept ``q``, ``k`` and ``z`` and the statistic ``lse``, and its model, whose
        output projection is read and checked.
    clusters
        Number of groups, by average linkage.
    queries
        Queries whose rows and outputs are compared, over all prompts; at least 2 a prompt.
    skip
        Queries left out at the start, where few keys can be seen.
    swapped
        Heads of the causal check: the ones with the nearest neighbours.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the bootstrap over prompts and of the random heads.

    Returns
    -------
    Dataset with ``pattern_divergence`` and ``output_similarity`` (one, other; heads in the order of
    their groups), ``cluster`` (layer, head), ``silhouette`` (-1 to 1), ``nearest_in_layer`` and
    ``alike_in_layer`` (layer, head; smallest divergence from, and largest cosine with, another head
    of the layer) and ``moved`` (condition; by how much the output distribution moves with the
    patterns of other heads, in nats). Averages have 95 % intervals over prompts.
    """
    require(capture, (*KEEP, *NEEDS), "similarity")
    qk_rows.refuse_other(capture, "similarity")
    names = heads(capture)
    if len(names) <= clusters:
        raise NotApplicable(f"clusters: {clusters} groups of {len(names)} heads; give fewer")

    count = capture.sizes["prompt"]
    rows = max(2, -(-queries // count))
    far, near = _compare(capture, model, names, rows, skip)
    distances, similarities = (
        np.asarray(sum(value / count for value in values)) for values in (far, near)
    )
    groups, silhouette = _group(distances, clusters)
    order = np.argsort(groups, kind="stable")
    grid = np.full((capture.sizes["layer"], capture.sizes["head"]), np.nan)
    grid[tuple(np.transpose(names))] = groups
    convention = f"mean over {rows} queries of each of {count} prompts"
    pooled = f"Jensen–Shannon divergence, {convention}; {_signatures.WHAT}"
    output_rule = f"cosine of z W_O in the residual stream, {convention}"
    bits, cosine = ("bits", "sequential", 0, 1), ("cosine", "diverging", -1, 1)
    results = Results(capture, seed=seed, convention=convention)
    results.add_all(
        ("pattern_divergence", ("one", "other"), distances[np.ix_(order, order)],
         "Divergence of the rows of two heads", bits, pooled, CLARK),
        ("output_similarity", ("one", "other"), similarities[np.ix_(order, order)],
         "Cosine of the outputs of two heads", cosine, output_rule, "EfficientViT"),
        ("cluster", ("layer", "head"), grid, "Group of the head",
         ("number of the group", "sequential", 1, clusters),
         f"average linkage of the divergences, {clusters} groups, numbered by size"),
        ("silhouette", (), silhouette, "Silhouette of the groups", ("share", "diverging", -1, 1),
         "mean over heads; near 0 there are no groups to speak of"),
    )  # fmt: skip
    results.add_means(
        ("nearest_in_layer", ("layer", "head"), _within_layers(capture, names, far, np.min),
         "Divergence from the nearest head of the layer", bits, pooled, CLARK),
        ("alike_in_layer", ("layer", "head"), _within_layers(capture, names, near, np.max),
         "Cosine with the most similar head of the layer", cosine, output_rule, "EfficientViT"),
    )  # fmt: skip
    ordered = [label(names[at]) for at in order]
    coords: dict[str, Any] = {"one": ordered, "other": ordered}
    reason = pattern_substitution.reason(capture)
    verdict = None
    if not reason:
        pairs = _pairs(distances, swapped, seed)
        moved = _moved(model, capture, names, pairs, checked)
        title = "Output moved by the pattern of another head"
        rule = f"{len(pairs[0])} heads with the nearest neighbours"
        pattern_substitution.add_moved(results, moved, title, rule)
        coords["condition"] = list(CONDITIONS)
        verdict = _verdict(moved)
    members = {f"group {group}": labels(grid == group) for group in range(1, clusters + 1)}
    return results.dataset(
        coords,
        heads_by_type=members,
        note=f"No causal check: {reason}." if reason else "",
        verdict=verdict,
    )


def _compare(
    capture: xr.Dataset, model: Model, names: list[Head], queries: int, skip: int
) -> tuple[Array, Array]:
    """Return divergence and cosine of every two heads (prompt, head of all, head of all)."""
    far, near = [], []
    weights = projections.read(model, ("o",))
    writes = {layer: weights.of(layer, "o").numpy() for layer in {layer for layer, _ in names}}
    for prompt, length in enumerate(capture["length"].values):
        positions = qk_rows.chosen(int(length), queries, skip)
        rows = _signatures.of_prompt(capture, prompt, positions)
        far.append(_signatures.divergences(rows[tuple(np.transpose(names))]))
        z = capture.variables["z"].isel(prompt=prompt).transpose("layer", "head", "query", ...)
        outputs = [
            z[layer, head].values[positions].astype(np.float64) @ writes[layer][head]
            for layer, head in names
        ]
        near.append(_cosines(np.stack(outputs)))
    return np.stack(far), np.stack(near)


def _within_layers(
    capture: xr.Dataset, names: list[Head], values: Array, reduce: Callable[..., Any]
) -> Array:
    """Reduce each head's numbers over the other heads of its layer (prompt, layer, head)."""
    result = np.full((len(values), capture.sizes["layer"], capture.sizes["head"]), np.nan)
    for at, head in enumerate(names):
        others = [other for other, name in enumerate(names) if name[0] == head[0] and other != at]
        if others:
            result[:, *head] = reduce(values[:, at, others], axis=-1)
    return result


def _cosines(outputs: Array) -> Array:
    """Return the cosine of every two vectors, averaged over the positions (item, item)."""
    lengths = np.linalg.norm(outputs, axis=-1, keepdims=True)
    unit = outputs / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.einsum("apc,bpc->ab", unit, unit, optimize=True) / outputs.shape[1])


def _group(distances: Array, clusters: int) -> tuple[NDArray[np.int64], float]:
    """Group items by their distances; number the groups from 1 by size, the largest first."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    clustering = AgglomerativeClustering(clusters, metric="precomputed", linkage="average")
    cluster_labels = clustering.fit(distances).labels_
    sizes = np.bincount(cluster_labels, minlength=clusters)
    number = np.empty(clusters, dtype=np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(1, clusters + 1)
    return number[cluster_labels], float(
        silhouette_score(distances, cluster_labels, metric="precomputed")
    )


def _pairs(distances: Array, count: int, seed: int) -> list[list[tuple[int, int]]]:
    """Pair the heads that have the nearest neighbours with these, and with random others."""
    far = distances + np.where(np.eye(len(distances)) > 0, np.inf, 0.0)
    closest = far.argmin(1)
    chosen = np.argsort(far.min(1), kind="stable")[:count]
    rng = np.random.default_rng(seed)
    random = [
        rng.choice([other for other in range(len(distances)) if other not in (at, closest[at])])
        for at in chosen
    ]
    return [
        [(int(at), int(closest[at])) for at in chosen],
        [(int(at), int(other)) for at, other in zip(chosen, random, strict=True)],
    ]


def _moved(
    model: Model,
    capture: xr.Dataset,
    names: list[Head],
    pairs: list[list[tuple[int, int]]],
    checked: int,
) -> Array:
    """Measure heads with the patterns of other heads (prompt, condition)."""
    divergences = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        whole = np.arange(int(capture["length"].values[prompt]))
        maps = {
            layer: qk_rows.rows(capture, prompt, layer, whole).weights()
            for layer in {names[other][0] for group in pairs for _, other in group}
        }
        edits = [
            pattern_substitution.fix(
                {names[at]: maps[names[to][0]][names[to][1]] for at, to in group}
            )
            for group in pairs
        ]
        divergences.append(pattern_substitution.divergences(model, capture, prompt, edits))
    return np.asarray(divergences)


def _verdict(moved: Array) -> Verdict:
    """Conclude whether the nearest head's pattern does less harm than another one's."""
    near, random = moved.mean(0)
    text = (
        f"heads with the pattern of their nearest head move the output by {amount(near)} nats, "
        f"with that of a random other head by {amount(random)}"
    )
    return causal_verdict(moved[:, 1] - moved[:, 0], text, "; nearness is correlational here")
