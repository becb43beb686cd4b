"""Similarity of heads: which look at the same keys, and which write the same things.

Two heads are near when the Jensen–Shannon divergence of their rows is small, and alike in what they
do when their outputs in the residual stream point the same way; the two need not agree. The heads
are grouped by the first, with the silhouette that says whether there are groups at all. The causal
number: how far the output moves when heads get the pattern of the head nearest to them, and when
they get that of a random other head.

Sources: What Does BERT Look At?, for the divergence; EfficientViT, for the similarity of the heads
of one layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    attending,
    averaged,
    dataset,
    interval,
    label,
    require,
    variable,
)
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses.qk_geometry import _signatures
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ("lse",)
KEEP = ("q", "k", "z")

Array = NDArray[np.float64]
Head = tuple[int, int]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    clusters: int = 6,
    queries: int = 96,
    skip: int = 8,
    swapped: int = 4,
    checked: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Compare every two heads by their rows and by their outputs, and group them.

    Parameters
    ----------
    capture
        Capture with the kept ``q``, ``k`` and ``z`` and the statistic ``lse``.
    model
        Model that was captured; its output projection is read and checked.
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

    Raises
    ------
    NotApplicable
        Where the output projection is not known, for fewer heads than groups, a capture without q,
        k, z and lse, or an option out of range.

    Examples
    --------
    >>> from headscope.analyses import similarity
    >>> from headscope.probes import capture, load_model
    >>> model = load_model("headscope/bundled")
    >>> cap = capture(model, [[0, *range(9, 40)]], stats=("lse",), keep=("q", "k", "z"))
    >>> similarity.run(cap, model)["pattern_divergence"].shape
    (32, 32)
    """
    for name, value, least in (("clusters", clusters, 2), ("queries", queries, 2)):
        options.at_least(name, value, least)
    for name, value in (("skip", skip), ("swapped", swapped), ("checked", checked)):
        options.at_least(name, value, 1)
    require(capture, (*KEEP, *NEEDS), "similarity")
    qk_rows.refuse_other(capture, "similarity")
    names = [
        (int(layer), head)
        for layer in np.flatnonzero(attending(capture))
        for head in range(capture.sizes["head"])
    ]
    if len(names) <= clusters:
        raise NotApplicable(f"clusters: {clusters} groups of {len(names)} heads; give fewer")

    count = capture.sizes["prompt"]
    each = max(2, -(-queries // count))
    apart = np.zeros((len(names), len(names)))
    alike = apart.copy()
    nearest = np.full((count, capture.sizes["layer"], capture.sizes["head"]), np.nan)
    likest = nearest.copy()
    writes = _writes(model, names)
    for prompt in range(count):
        places = qk_rows.chosen(int(capture["length"].values[prompt]), each, skip)
        rows = _signatures.of_prompt(capture, prompt, places)
        far = _signatures.divergences(np.stack([rows[head] for head in names]))
        near = _cosines(_outputs(capture, prompt, places, names, writes))
        apart, alike = apart + far / count, alike + near / count
        for at, head in enumerate(names):
            same = [i for i, one in enumerate(names) if one[0] == head[0] and i != at]
            if same:
                nearest[prompt][head] = far[at, same].min()
                likest[prompt][head] = near[at, same].max()

    groups, silhouette = _group(apart, clusters)
    order = np.argsort(groups, kind="stable")
    grid = np.full((capture.sizes["layer"], capture.sizes["head"]), np.nan)
    for head, group in zip(names, groups, strict=True):
        grid[head] = group
    convention = f"mean over {each} queries of each of {count} prompts"
    pooled = f"Jensen–Shannon divergence, {convention}; {_signatures.WHAT}"
    written = f"cosine of z W_O in the residual stream, {convention}"
    variables = {
        "pattern_divergence": variable(
            ("one", "other"), apart[np.ix_(order, order)], "Divergence of the rows of two heads",
            "bits", "sequential", 0, 1, convention=pooled, source="What Does BERT Look At?",
        ),
        "output_similarity": variable(
            ("one", "other"), alike[np.ix_(order, order)], "Cosine of the outputs of two heads",
            "cosine", "diverging", -1, 1, convention=written, source="EfficientViT",
        ),
        "cluster": variable(
            ("layer", "head"), grid, "Group of the head", "number of the group", "sequential", 1,
            clusters, convention=f"average linkage of the divergences, {clusters} groups, numbered "
            "by size",
        ),
        "silhouette": variable(
            (), silhouette, "Silhouette of the groups", "share", "diverging", -1, 1,
            convention="mean over heads; near 0 there are no groups to speak of",
        ),
        **averaged(
            "nearest_in_layer", ("layer", "head"), nearest, "Divergence from the nearest head of "
            "the layer", "bits", "sequential", 0, 1, seed=seed, convention=pooled,
            source="What Does BERT Look At?",
        ),
        **averaged(
            "alike_in_layer", ("layer", "head"), likest, "Cosine with the most similar head of "
            "the layer", "cosine", "diverging", -1, 1, seed=seed, convention=written,
            source="EfficientViT",
        ),
    }  # fmt: skip
    ordered = [label(names[at]) for at in order]
    coords: dict[str, Any] = {"one": ordered, "other": ordered}
    note = pattern_substitution.reason(capture)
    if note:
        note = f"No causal check: {note}."
    else:
        pairs = _pairs(apart, swapped, seed)
        moved = _moved(model, capture, names, pairs, checked)
        mean, lower, upper = bootstrap(moved, seed=seed)
        variables |= interval(
            "moved", ("condition",), mean, lower, upper,
            "Output moved by the pattern of another head", "nats", "sequential", 0,
            convention=f"KL divergence from the intact output, mean over the positions of "
            f"{len(moved)} prompts; {len(pairs[0])} heads with the nearest neighbours",
            evidence="causal",
        )  # fmt: skip
        coords["condition"] = ["pattern of the nearest head", "pattern of a random other head"]
        note = _note(mean)
    members = {
        f"group {group}": [
            label(head) for head, own in zip(names, groups, strict=True) if own == group
        ]
        for group in range(1, clusters + 1)
    }
    return dataset(
        capture, variables, coords, convention=convention, heads_by_type=members, note=note
    )


def _writes(model: Model, names: list[Head]) -> dict[int, Array]:
    from headscope.probes.attention import projections

    found = projections.read(model, ("o",))
    return {layer: found.of(layer, "o").numpy() for layer in {layer for layer, _ in names}}


def _outputs(
    capture: xr.Dataset,
    prompt: int,
    places: NDArray[np.int64],
    names: list[Head],
    writes: dict[int, Array],
) -> Array:
    """Return what every head writes at some positions (head of all, position, channel)."""
    z = capture.variables["z"].isel(prompt=prompt).transpose("layer", "head", "query", ...)
    return np.stack(
        [
            z[layer, head].values[places].astype(np.float64) @ writes[layer][head]
            for layer, head in names
        ]
    )


def _cosines(outputs: Array) -> Array:
    """Return the cosine of every two vectors, averaged over the positions (item, item)."""
    lengths = np.linalg.norm(outputs, axis=-1, keepdims=True)
    unit = outputs / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.einsum("apc,bpc->ab", unit, unit, optimize=True) / outputs.shape[1])


def _group(apart: Array, clusters: int) -> tuple[NDArray[np.int64], float]:
    """Group items by their distances; number the groups from 1 by size, the largest first."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    found = AgglomerativeClustering(clusters, metric="precomputed", linkage="average").fit(apart)
    sizes = np.bincount(found.labels_, minlength=clusters)
    number = np.empty(clusters, dtype=np.int64)
    number[np.argsort(-sizes, kind="stable")] = np.arange(1, clusters + 1)
    return number[found.labels_], float(
        silhouette_score(apart, found.labels_, metric="precomputed")
    )


def _pairs(apart: Array, count: int, seed: int) -> list[list[tuple[int, int]]]:
    """Pair the heads that have the nearest neighbours with these, and with random others."""
    far = apart + np.where(np.eye(len(apart)) > 0, np.inf, 0.0)
    closest = far.argmin(1)
    chosen = np.argsort(far.min(1), kind="stable")[:count]
    rng = np.random.default_rng(seed)
    random = [
        rng.choice([other for other in range(len(apart)) if other not in (at, closest[at])])
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
    """Give heads the patterns of others (prompt, condition)."""
    found = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        whole = np.arange(int(capture["length"].values[prompt]))
        maps = {
            layer: qk_rows.rows(capture, prompt, layer, whole).weights()
            for layer in {names[other][0] for each in pairs for _, other in each}
        }
        row = []
        for each in pairs:
            patterns = {names[at]: maps[names[to][0]][names[to][1]] for at, to in each}
            row.append(
                pattern_substitution.divergence(
                    model, capture, prompt, pattern_substitution.fix(patterns)
                )
            )
        found.append(row)
    return np.asarray(found)


def _note(mean: Array) -> str:
    near, random = (float(one) for one in mean)
    said = (
        f"heads with the pattern of their nearest head move the output by {near:.3f} nats, with "
        f"that of a random other head by {random:.3f}"
    )
    if near < random:
        return f"Causal check agrees: {said}."
    return f"DISAGREEMENT: {said}; nearness is correlational here."
