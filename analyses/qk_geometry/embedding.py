"""Joint embedding of queries and keys: one picture a head in which near means attended.

Queries and keys live in one space but seldom in one place. Two changes leave every attention weight
as it is: moving all keys by one vector adds the same to every logit of a row, and dividing queries
by c while multiplying keys by c leaves their products. So the keys are moved onto the centroid of
the queries and c brings both to one size; then principal components draw them. How far to trust the
picture stands beside it: the correlation of closeness with the logits.

The distribution gap is measured before either change: the mean Mahalanobis distance of the queries
from the distribution of the keys, over that of other keys from it. 1: queries look like keys.

Sources: AttentionViz, for the joint embedding; RetrievalAttention, for the gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    attending,
    averaged,
    dataset,
    label,
    require,
    top,
    variable,
)
from headscope.kernels.errors import NotApplicable

NEEDS = ()
KEEP = ("q", "k")

Array = NDArray[np.float64]
SCALINGS = {
    "norm": "c brings centred queries and keys to one mean square length",
    "correlation": "c of the largest correlation between closeness and product, of 25 tried",
}
SOURCE = "AttentionViz"
# Heads that one menu can hold.
PLANES = 40


def run(
    capture: xr.Dataset,
    *,
    scaling: str = "norm",
    points: int = 48,
    sample: int = 1024,
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

    Raises
    ------
    NotApplicable
        For a capture without q and k, too few tokens, or an option out of range.

    Examples
    --------
    >>> from headscope.analyses import embedding
    >>> from headscope.probes import capture
    >>> cap = capture("headscope/bundled", [[0, *range(9, 40)]], stats=(), keep=("q", "k"))
    >>> embedding.run(cap, points=8)["embedding"].sizes["point"]
    16
    """
    options.one_of("scaling", scaling, SCALINGS)
    options.at_least("points", points, 2)
    options.at_least("sample", sample, 8)
    require(capture, KEEP, "embedding")
    options.one_text(capture.attrs.get("attention", "self"), "embedding")
    lengths = capture["length"].values
    if int(lengths.min()) < 4:
        raise NotApplicable(f"prompts: one has {int(lengths.min())} tokens; give 4 or more to each")
    places = [qk_rows.chosen(int(length), sample, 0) for length in lengths]
    inside = qk_rows.chosen(len(places[0]), points, 0)
    drawn = places[0][inside]
    shape = (capture.sizes["layer"], capture.sizes["head"])
    gap = np.full((capture.sizes["prompt"], *shape), np.nan)
    scores = {name: np.full(shape, np.nan) for name in ("explained", "fidelity", "plane_fidelity")}
    planes: dict[tuple[int, int], Array] = {}
    for layer in np.flatnonzero(attending(capture)):
        rows = [
            qk_rows.rows(capture, prompt, int(layer), where, lse=False)
            for prompt, where in enumerate(places)
        ]
        gap[:, layer] = _gaps(rows, seed)
        for head in range(shape[1]):
            joint = join(
                [one.queries[head] for one in rows],
                [one.chosen_keys[head] for one in rows],
                scaling,
            )
            seen = rows[0].seen[:, places[0]]
            pca = joint.components()
            scores["explained"][layer, head] = pca.explained_variance_ratio_.sum()
            first = (joint.queries[: len(places[0])], joint.keys[: len(places[0])])
            product = first[0] @ first[1].T
            scores["fidelity"][layer, head] = _fidelity(*first, product, seen)
            flat = (pca.transform(first[0]), pca.transform(first[1]))
            scores["plane_fidelity"][layer, head] = _fidelity(*flat, product, seen)
            planes[int(layer), head] = np.concatenate([each[inside] for each in flat])
    convention = (
        "keys moved onto the centroid of the queries, queries / c and keys · c; "
        f"{SCALINGS[scaling]}"
    )
    variables = averaged(
        "gap", ("layer", "head"), gap, "Queries away from the distribution of keys", "ratio",
        "sequential", 0, seed=seed, source="RetrievalAttention",
        convention="mean Mahalanobis distance of queries from half of the keys (shrunk "
        "covariance), over that of the other half",
    )  # fmt: skip
    titles = {
        "explained": ("Joint variance shown in the plane", "share", "sequential", 0),
        "fidelity": ("Closeness against logits, all dimensions", "correlation", "diverging", -1),
        "plane_fidelity": (
            "Closeness against logits, in the plane",
            "correlation",
            "diverging",
            -1,
        ),
    }
    for name, (title, units, scale, low) in titles.items():
        variables[name] = variable(
            ("layer", "head"), scores[name], title, units, scale, low, 1, source=SOURCE,
            convention=f"{convention}; principal components of {sum(map(len, places))} queries "
            "and as many keys" + ("" if name == "explained" else "; first prompt, less row means"),
        )  # fmt: skip
    wanted = sorted(head for head in top(variables["gap"].values, PLANES) if head in planes)
    cloud = np.stack([planes[head] for head in wanted])
    position = np.broadcast_to(np.tile(drawn, 2), cloud.shape[:2])
    variables["embedding"] = variable(
        ("plane", "point"), position, "Queries and keys of a head; colour: position in the text",
        "tokens", "sequential", 0, source=SOURCE, convention=convention,
    )  # fmt: skip
    coords = {
        "plane": [label(head) for head in wanted],
        "x": (("plane", "point"), cloud[..., 0], {"long_name": "first component"}),
        "y": (("plane", "point"), cloud[..., 1], {"long_name": "second component"}),
        "kind": ("point", ["query"] * len(drawn) + ["key"] * len(drawn)),
        "label": ("point", _labels(capture, drawn)),
    }
    return dataset(
        capture,
        variables,
        coords,
        convention=convention,
        note="A picture of the weights as they are: moving and scaling change none of them. Read "
        "nearness in it only where closeness goes with the logits (`plane_fidelity` near 1).",
    )


@dataclass(frozen=True)
class Joint:
    """Queries and keys in one space; the attention weights are those of the originals.

    Attributes
    ----------
    queries, keys
        Vectors, dims token, size.
    factor
        What the keys were multiplied and the queries divided by.
    """

    queries: Array
    keys: Array
    factor: float

    def components(self, count: int = 2) -> Any:
        """Return the fitted principal components of both together."""
        from sklearn.decomposition import PCA

        # A head whose vectors are all one has no spread to take a share of: NaN.
        with np.errstate(invalid="ignore"):
            return PCA(count, svd_solver="full").fit(np.concatenate([self.queries, self.keys]))


def join(queries: list[Array], keys: list[Array], scaling: str = "norm") -> Joint:
    """Bring the queries and keys of a head to one place and size.

    >>> import numpy as np
    >>> one = join([np.array([[4.0, 0.0], [0.0, 4.0]])], [np.array([[1.0, 0.0], [0.0, 1.0]])])
    >>> one.factor, one.queries.tolist() == one.keys.tolist()
    (2.0, True)
    """
    q, k = np.concatenate(queries), np.concatenate(keys)
    centred = k - k.mean(0)
    sizes = [float(((each - each.mean(0)) ** 2).sum(-1).mean()) for each in (q, k)]
    factor = (sizes[0] / sizes[1]) ** 0.25 if min(sizes) > 0 else 1.0
    if scaling == "correlation":
        step = max(1, len(q) // 256)
        some, others = q[::step], centred[::step]
        tried = factor * 2.0 ** np.linspace(-3, 3, 25)
        found = [_closeness(some / c, others * c + some.mean(0) / c) for c in tried]
        products = (some @ others.T).ravel()
        factor = float(
            tried[int(np.argmax([_correlation(one.ravel(), products) for one in found]))]
        )
    return Joint(q / factor, centred * factor + q.mean(0) / factor, factor)


def _closeness(queries: Array, keys: Array) -> Array:
    """Return minus the square of every distance (query, key)."""
    squares = (queries**2).sum(-1)[:, None] + (keys**2).sum(-1)[None, :]
    return np.asarray(2 * queries @ keys.T - squares)


def _fidelity(queries: Array, keys: Array, product: Array, seen: NDArray[np.bool_]) -> float:
    """Correlate closeness with logits over the pairs that are seen, each less its row's mean."""
    return _correlation(
        *(_within_rows(each, seen) for each in (_closeness(queries, keys), product))
    )


def _within_rows(values: Array, seen: NDArray[np.bool_]) -> Array:
    mean = np.where(seen, values, 0.0).sum(-1, keepdims=True) / seen.sum(-1, keepdims=True).clip(1)
    return np.asarray((values - mean)[seen])


def _correlation(one: Array, other: Array) -> float:
    first, second = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / scale) if scale > 0 else float("nan")


def _gaps(rows: list[qk_rows.Rows], seed: int) -> Array:
    """Return the ratio of Mahalanobis distances of every prompt and head of a layer."""
    from sklearn.covariance import LedoitWolf

    rng = np.random.default_rng(seed)
    halves = [rng.permutation(len(one.places)) < len(one.places) // 2 for one in rows]
    found = np.full((len(rows), len(rows[0].queries)), np.nan)
    for head in range(found.shape[1]):
        keys = [one.chosen_keys[head] for one in rows]
        fitted = LedoitWolf().fit(
            np.concatenate([one[half] for one, half in zip(keys, halves, strict=True)])
        )
        for prompt, (one, half) in enumerate(zip(keys, halves, strict=True)):
            from_queries, from_keys = (
                np.sqrt(fitted.mahalanobis(each)).mean()
                for each in (rows[prompt].queries[head], one[~half])
            )
            found[prompt, head] = from_queries / from_keys if from_keys > 0 else np.nan
    return found


def _labels(capture: xr.Dataset, drawn: NDArray[np.int64]) -> list[str]:
    words = [""] * int(capture["length"].values[0])
    if "token" in capture.coords:
        words = [str(word) for word in capture["token"].transpose("prompt", "query").values[0]]
    return [f"{kind} {at}: {words[at]}" for kind in ("query", "key") for at in drawn]
