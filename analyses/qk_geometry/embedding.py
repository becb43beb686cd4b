"""Joint embedding of queries and keys: a map of each head in which near means attended.

Queries and keys share a space but seldom a region of it. Two changes leave every attention weight
as it is: moving all keys by one vector adds the same to every logit of a row, and dividing queries
by c while multiplying keys by c leaves their products. So the keys are moved onto the centroid of
the queries and c brings both to one size; then principal components draw them. How far to trust the
picture is measured by the correlation of closeness with the logits.

The distribution gap is measured before either change: the mean Mahalanobis distance of the queries
from the distribution of the keys, over that of other keys from it. 1: queries look like keys.

Sources: AttentionViz, for the joint embedding; RetrievalAttention, for the gap.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Head
from headscope.analyses._measurements import qk_rows
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._measurements.received import token_texts
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import Results, attending, label, require, top
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount

NEEDS = ()
QUICK = {"points": 4}
SUPPORTS = {"encoder", "vision", "hybrid"}
KEEP = ("q", "k")

SCALINGS = {
    "norm": "c brings centred queries and keys to one mean square length",
    "correlation": "c of the largest correlation between closeness and product, of 25 tried",
}
SOURCE = "AttentionViz"
# Title, units, scale and lowest value of the numbers of a picture.
TITLES: dict[str, tuple[Any, ...]] = {
    "explained": ("Joint variance shown in the plane", "share", "sequential", 0),
    "fidelity": ("Closeness against logits, all dimensions", "correlation", "diverging", -1),
    "plane_fidelity": ("Closeness against logits, in the plane", "correlation", "diverging", -1),
}
# Heads that one menu can hold.
PLANES = 40


def run(
    capture: xr.Dataset,
    *,
    scaling: Annotated[str, OneOf(tuple(SCALINGS))] = "norm",
    points: Annotated[int, AtLeast(2)] = 48,
    sample: Annotated[int, AtLeast(8)] = 1024,
    seed: int = 0,
) -> xr.Dataset:
    """Embed the queries and keys of every head together, and measure how far apart they lie.

    Parameters
    ----------
    capture
        Capture with the kept ``q`` and ``k``, as they are compared.
    scaling
        How c is chosen: ``norm`` or ``correlation``.
    points
        Tokens of the first prompt that are drawn, evenly over it.
    sample
        Tokens of each prompt that enter the numbers, at most, evenly over it.
    seed
        Seed of the bootstrap over prompts and of the split of the keys.

    Returns
    -------
    Dataset with ``gap`` (layer, head; ratio of distances, with a 95 % interval over prompts),
    ``explained`` (layer, head; share of the joint variance that the picture shows), ``fidelity``
    and ``plane_fidelity`` (layer, head; correlation of closeness with the logits less the mean of
    their row, in all dimensions and in the picture), and ``embedding`` (plane, point; position in
    the text, at the coordinates ``x`` and ``y``; the 40 heads of the largest gap where there are
    more).
    """
    require(capture, KEEP, "embedding", ("self",))
    lengths = capture["length"].values
    if int(lengths.min()) < 4:
        raise NotApplicable(f"prompts: one has {int(lengths.min())} tokens; give 4 or more to each")
    positions = [qk_rows.chosen(int(length), sample, 0) for length in lengths]
    drawn = qk_rows.chosen(len(positions[0]), points, 0)
    shape = (capture.sizes["layer"], capture.sizes["head"])
    gap = np.full((capture.sizes["prompt"], *shape), np.nan)
    scores = {name: np.full(shape, np.nan) for name in TITLES}
    planes: dict[Head, Array] = {}
    for layer in np.flatnonzero(attending(capture)):
        rows = [
            qk_rows.rows(capture, prompt, int(layer), chosen, lse=False)
            for prompt, chosen in enumerate(positions)
        ]
        gap[:, layer] = _gaps(rows, seed)
        for head in range(shape[1]):
            values, plane = _embed(rows, head, scaling)
            for name, value in zip(TITLES, values, strict=True):
                scores[name][layer, head] = value
            planes[int(layer), head] = np.concatenate([vectors[drawn] for vectors in plane])
    convention = (
        "keys moved onto the centroid of the queries, queries / c and keys · c; "
        f"{SCALINGS[scaling]}"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_mean(
        "gap", ("layer", "head"), gap, "Queries away from the distribution of keys", "ratio",
        "sequential", 0, source="RetrievalAttention",
        convention="mean Mahalanobis distance of queries from half of the keys (shrunk "
        "covariance), over that of the other half",
    )  # fmt: skip
    count = sum(map(len, positions))
    for name, (title, units, scale, low) in TITLES.items():
        results.add(
            name, ("layer", "head"), scores[name], title, units, scale, low, 1,
            convention=f"{convention}; principal components of {count} queries "
            "and as many keys" + ("" if name == "explained" else "; first prompt, less row means"),
        )  # fmt: skip
    shown = sorted(head for head in top(results["gap"].values, PLANES) if head in planes)
    cloud = np.stack([planes[head] for head in shown])
    tokens = positions[0][drawn]
    results.add(
        "embedding", ("plane", "point"), np.broadcast_to(np.tile(tokens, 2), cloud.shape[:2]),
        "Queries and keys of a head; colour: position in the text", "tokens", "sequential", 0,
    )  # fmt: skip
    return results.dataset(
        {
            "plane": [label(head) for head in shown],
            "x": (("plane", "point"), cloud[..., 0], {"long_name": "first component"}),
            "y": (("plane", "point"), cloud[..., 1], {"long_name": "second component"}),
            "kind": ("point", ["query"] * len(tokens) + ["key"] * len(tokens)),
            "label": ("point", _labels(capture, tokens)),
        },
        note=f"Queries lie furthest from the distribution of keys in {_best(results, 'gap')}. "
        "Moving and scaling change none of the weights; read nearness on the plane only where "
        "closeness goes with the logits, `plane_fidelity` near 1: most so in "
        f"{_best(results, 'plane_fidelity')}.",
    )


def _best(results: Results, name: str) -> str:
    """Return the names of the heads with the highest score, and the median of all."""
    scores = results[name].values
    named = ", ".join(f"{label(head)} ({amount(scores[head])})" for head in top(scores, 3))
    return f"{named}; median {amount(np.nanmedian(scores))}"


def _embed(
    rows: list[qk_rows.Rows], head: int, scaling: str
) -> tuple[tuple[float, float, float], tuple[Array, Array]]:
    """Return the scores of TITLES of a head, and the first prompt's queries and keys in a plane."""
    from sklearn.decomposition import PCA

    joint = join(
        [prompt.queries[head] for prompt in rows],
        [prompt.chosen_keys[head] for prompt in rows],
        scaling,
    )
    # A head whose vectors are all one has no spread to take a share of: NaN.
    with np.errstate(invalid="ignore"):
        pca = PCA(2, svd_solver="full").fit(np.concatenate([joint.queries, joint.keys]))
    visible = rows[0].visible[:, rows[0].positions]
    count = len(rows[0].positions)
    queries, keys = joint.queries[:count], joint.keys[:count]
    product = queries @ keys.T
    plane = (pca.transform(queries), pca.transform(keys))
    scores = (
        float(pca.explained_variance_ratio_.sum()),
        _fidelity(queries, keys, product, visible),
        _fidelity(*plane, product, visible),
    )
    return scores, plane


@dataclass(frozen=True)
class Joint:
    """Queries / factor and keys · factor (token, size); the weights are those of the originals."""

    queries: Array
    keys: Array
    factor: float


def join(queries: list[Array], keys: list[Array], scaling: str = "norm") -> Joint:
    """Center and scale the queries and keys of a head alike.

    >>> joint = join([np.array([[4.0, 0.0], [0.0, 4.0]])], [np.array([[1.0, 0.0], [0.0, 1.0]])])
    >>> joint.factor, joint.queries.tolist() == joint.keys.tolist()
    (2.0, True)
    """
    q, k = np.concatenate(queries), np.concatenate(keys)
    centred = k - k.mean(0)
    sizes = [float(((vectors - vectors.mean(0)) ** 2).sum(-1).mean()) for vectors in (q, k)]
    factor = (sizes[0] / sizes[1]) ** 0.25 if min(sizes) > 0 else 1.0
    if scaling == "correlation":
        step = max(1, len(q) // 256)
        query_sample, key_sample = q[::step], centred[::step]
        products = (query_sample @ key_sample.T).ravel()
        factors = factor * 2.0 ** np.linspace(-3, 3, 25)
        correlations = [
            _correlation(
                _closeness(query_sample / c, key_sample * c + query_sample.mean(0) / c).ravel(),
                products,
            )
            for c in factors
        ]
        factor = float(factors[int(np.argmax(correlations))])
    return Joint(q / factor, centred * factor + q.mean(0) / factor, factor)


def _closeness(queries: Array, keys: Array) -> Array:
    """Return minus the square of every distance (query, key)."""
    squares = (queries**2).sum(-1)[:, None] + (keys**2).sum(-1)[None, :]
    return np.asarray(2 * queries @ keys.T - squares)


def _fidelity(queries: Array, keys: Array, product: Array, visible: NDArray[np.bool_]) -> float:
    """Correlate closeness with logits over the visible pairs, each less its row's mean."""
    closeness = _within_rows(_closeness(queries, keys), visible)
    return _correlation(closeness, _within_rows(product, visible))


def _within_rows(values: Array, visible: NDArray[np.bool_]) -> Array:
    """Return the visible values less the mean of their row."""
    count = visible.sum(-1, keepdims=True).clip(1)
    mean = np.where(visible, values, 0.0).sum(-1, keepdims=True) / count
    return np.asarray((values - mean)[visible])


def _correlation(first: Array, second: Array) -> float:
    """Return Pearson's correlation, NaN where one does not vary."""
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / scale) if scale > 0 else float("nan")


def _gaps(rows: list[qk_rows.Rows], seed: int) -> Array:
    """Return the ratio of Mahalanobis distances of every prompt and head of a layer."""
    from sklearn.covariance import LedoitWolf

    rng = np.random.default_rng(seed)
    halves = [rng.permutation(len(row.positions)) < len(row.positions) // 2 for row in rows]
    ratios = np.full((len(rows), len(rows[0].queries)), np.nan)
    for head in range(ratios.shape[1]):
        keys = [row.chosen_keys[head] for row in rows]
        fitted = LedoitWolf().fit(
            np.concatenate([vectors[half] for vectors, half in zip(keys, halves, strict=True)])
        )
        for prompt, (vectors, half) in enumerate(zip(keys, halves, strict=True)):
            from_queries, from_keys = (
                np.sqrt(fitted.mahalanobis(points)).mean()
                for points in (rows[prompt].queries[head], vectors[~half])
            )
            ratios[prompt, head] = from_queries / from_keys if from_keys > 0 else np.nan
    return ratios


def _labels(capture: xr.Dataset, drawn: NDArray[np.int64]) -> list[str]:
    """List the drawn queries, then the keys, by position and token."""
    tokens = token_texts(capture)
    names = [f"{at}: {'' if tokens is None else tokens[0, at]}" for at in drawn]
    return [f"{kind} {name}" for kind in ("query", "key") for name in names]
