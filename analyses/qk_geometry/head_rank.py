"""Ranks: how many directions a head reads, writes and compares with.

The query–key form ``W_Q W_Kᵀ`` and the output–value map ``W_V W_O`` of a head have at most as many
directions as the head is wide, however long the text (the low-rank bottleneck). How many they use
is read from their singular values σ: the stable rank ``Σσ² / σ_1²`` and the effective rank
``exp H(σ / Σσ)``. Keys use fewer: their PCA rank is the number of principal components that hold
90 % of their variance, before and after the rotary embedding. And attention itself lowers the rank
of what flows through it: the residual of the stream to its nearest matrix of equal rows, which
shrinks doubly exponentially with depth where nothing is added back.

Sources: Low-Rank Bottleneck; On the Benefits of Rank; Loki; Attention is Not All You Need: Pure
Attention Loses Rank; Roy & Vetterli, The effective rank, for the effective rank.
"""

from itertools import product
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._runtime.results import Results, attending, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.qk_geometry import _key_pca
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.attention import projections, rotary
from headscope.probes.attention.projections import Weights
from headscope.probes.models.model import Model

NEEDS = ()
SUPPORTS = {"encoder", "hybrid"}
KEEP = ("q", "k", "resid")

NORMS = {"frobenius": "Frobenius norm", "composite": "√(‖·‖₁ ‖·‖_∞), the norm of the paper"}
BOTTLENECK = "Low-Rank Bottleneck; On the Benefits of Rank"
COLLAPSE = "Attention is Not All You Need: Pure Attention Loses Rank"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    variance: Annotated[float, Between(0.01, 1)] = 0.9,
    norm: Annotated[str, OneOf(tuple(NORMS))] = "frobenius",
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the ranks of every head's weights, of its keys, and of the residual stream.

    Parameters
    ----------
    capture, model
        Capture with the kept ``q``, ``k`` and ``resid``, and its model, whose weights and rotation
        are read and checked.
    variance
        Share of the variance of the keys that their components hold, between 0 and 1.
    norm
        Norm of the residual to equal rows, over that of the whole: ``frobenius`` or ``composite``.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the bootstrap over prompts and of the random directions.

    Returns
    -------
    Dataset with ``qk_stable_rank``, ``qk_effective_rank``, ``ov_stable_rank`` and
    ``ov_effective_rank`` (layer, head; directions), ``key_rank`` and ``key_rank_before_rotation``
    (layer, kv_head; components), ``to_equal_rows`` and ``to_rank_one`` (boundary; share of the
    norm of the residual stream that is left) and ``moved`` (condition; how far the output moves
    when all keys keep their components, or as many random directions, in nats); the last three
    with 95 % intervals over prompts. The number of keys caps their rank.
    """
    require(capture, KEEP, "head_rank", ("self",))
    tokens, head_size = int(capture["length"].values.sum()), capture.sizes["size"]
    if tokens < 3:
        raise NotApplicable(f"prompts: {tokens} tokens have no variance; give 3 or more")
    weights = projections.read(model)
    turns = rotary.read(model, int(capture["length"].values.max()))
    results = Results(capture, seed=seed)
    of_weights = (
        f"singular values of the stored weights, head size {head_size}; the gain of the norm "
        "before them is not part of them"
    )
    of_products = of_weights
    if any(len(turn.pairs) for turn in turns.values()):
        of_products += "; QK without rotation (distance 0)"
    if weights.normalised:
        of_products += "; queries and keys are also divided by their length"
    meaning, ranks = ("sequential", 0, head_size), _weight_ranks(capture, weights)
    for circuit, title, convention in (
        ("qk", "query–key form", of_products), ("ov", "output–value map", of_weights),
    ):  # fmt: skip
        for kind, formula in (("stable", "Σσ² / σ₁²"), ("effective", "exp H(σ / Σσ)")):
            results.add(
                f"{circuit}_{kind}_rank", ("layer", "head"), ranks[circuit, kind],
                f"{kind.capitalize()} rank of the {title}", "directions", *meaning,
                source=BOTTLENECK, convention=f"{formula}; {convention}",
            )  # fmt: skip
    after, before = _key_pca.ranks(capture, turns, variance)
    groups, components = ("layer", "kv_head"), ("components", *meaning)
    results.add_all(
        ("key_rank", groups, after, "Key rank, as they are compared", components),
        ("key_rank_before_rotation", groups, before, "Key rank, before their rotation", components),
        source="Loki", convention=f"principal components that hold {percent(variance)} of the "
        f"variance of {tokens} keys; head size {head_size}",
    )  # fmt: skip
    from_equal, from_one = _stream(capture, norm)
    results.add_means(
        ("to_equal_rows", ("boundary",), from_equal, "Residual stream away from equal rows",
         ("share of its norm", "sequential", 0), f"‖X − 1 mean(X)ᵀ‖ / ‖X‖, {NORMS[norm]}"),
        ("to_rank_one", ("boundary",), from_one, "Residual stream away from rank one",
         ("share of its norm", "sequential", 0, 1),
         "√(1 − σ₁² / Σσ²): the nearest matrix of rank one, Frobenius norm"),
        source=COLLAPSE,
    )  # fmt: skip
    coords: dict[str, Any] = {
        "kv_head": np.arange(capture.sizes["kv_head"]),
        "boundary": ["input", *(f"after L{layer}" for layer in range(capture.sizes["layer"]))],
    }
    first, last = results["to_equal_rows"].values[[0, -1]]
    note = (
        f"Away from equal rows: {amount(first)} of the norm of the stream at the input, "
        f"{amount(last)} at the end."
    )
    if tokens < 4 * head_size:
        note += (
            f" {tokens} keys are few for a head size of {head_size}: their rank is an "
            "underestimate."
        )
    verdict = None
    reason = pattern_substitution.reason(capture)
    if reason:
        note = f"No causal check of the key rank: {reason}. {note}"
    else:
        moved = _key_pca.moved(model, capture, after, checked, seed)
        pattern_substitution.add_moved(
            results, moved, "Output moved when all keys keep few directions",
            "as many directions as the key rank of each head, its principal components or random "
            "ones", source="Loki",
        )  # fmt: skip
        coords["condition"] = ["their principal components", "random directions"]
        verdict = _verdict(moved)
    return results.dataset(coords, note=note, verdict=verdict)


def _verdict(moved: Array) -> Verdict:
    """Conclude whether keys need their own components rather than any directions."""
    own, random = moved.mean(0)
    text = (
        f"with keys in their principal components alone the output moves by {amount(own)} nats, in "
        f"as many random directions by {amount(random)}"
    )
    return causal_verdict(moved[:, 1] - moved[:, 0], text, "; the key rank is correlational here")


def singular_values(left: Array, right: Array) -> Array:
    """Return the singular values of ``left @ right.T`` without making it (..., size).

    >>> singular_values(np.eye(5)[:, :2], 3 * np.eye(5)[:, :2]).tolist()
    [3.0, 3.0]
    """
    first, second = (np.linalg.qr(factor, mode="r") for factor in (left, right))
    return np.asarray(np.linalg.svd(first @ np.swapaxes(second, -1, -2), compute_uv=False))


def stable_rank(values: Array) -> Array:
    """Return ``Σσ² / σ_1²``: 1 for rank one, the size for equal singular values; NaN for zero.

    >>> float(stable_rank(np.array([2.0, 2.0, 0.0])))
    2.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((values**2).sum(-1) / values.max(-1) ** 2)


def effective_rank(values: Array) -> Array:
    """Return ``exp H(σ / Σσ)``, H the entropy; NaN for zero.

    >>> round(float(effective_rank(np.array([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = values / values.sum(-1, keepdims=True)
        terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), share)
    return np.asarray(np.exp(-terms.sum(-1)))


def _weight_ranks(capture: xr.Dataset, weights: Weights) -> dict[tuple[str, str], Array]:
    """Return the stable and effective ranks of both circuits (layer, head)."""
    shape = (capture.sizes["layer"], capture.sizes["head"])
    pairs = product(("qk", "ov"), ("stable", "effective"))
    result = {pair: np.full(shape, np.nan) for pair in pairs}
    groups = capture["kv_group"].values
    for layer in np.flatnonzero(attending(capture)):
        q, k, v, o = (weights.of(int(layer), part).numpy() for part in "qkvo")
        factors = {"qk": (q, k[groups]), "ov": (v[groups], np.swapaxes(o, 1, 2))}
        for circuit, (left, right) in factors.items():
            values = singular_values(left, right)
            result[circuit, "stable"][layer] = stable_rank(values)
            result[circuit, "effective"][layer] = effective_rank(values)
    return result


def _stream(capture: xr.Dataset, norm: str) -> tuple[Array, Array]:
    """Return how far the stream is from equal rows, and from rank one (prompt, boundary)."""
    stream = capture.variables["resid"].transpose("prompt", "boundary", "query", "channel")
    shape = (capture.sizes["prompt"], capture.sizes["boundary"])
    from_equal, from_one = np.full(shape, np.nan), np.full(shape, np.nan)
    for prompt, length in enumerate(capture["length"].values):
        for boundary in range(shape[1]):
            matrix = stream[prompt, boundary, : int(length)].values.astype(np.float64)
            from_equal[prompt, boundary] = to_equal_rows(matrix, norm)
            from_one[prompt, boundary] = to_rank_one(matrix)
    return from_equal, from_one


def to_equal_rows(matrix: Array, norm: str) -> float:
    """Return ``‖X − 1 mean(X)ᵀ‖ / ‖X‖``."""
    return _norm(matrix - matrix.mean(0), norm) / max(_norm(matrix, norm), 1e-300)


def _norm(matrix: Array, norm: str) -> float:
    """Return the Frobenius norm, or the composite one."""
    if norm == "frobenius":
        return float(np.linalg.norm(matrix))
    return float(np.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf)))


def to_rank_one(matrix: Array) -> float:
    """Return ``√(1 − σ_1² / Σσ²)``, the distance to the nearest matrix of rank one."""
    small = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    values = np.linalg.eigvalsh(small @ small.T)
    return float(np.sqrt(max(1 - values[-1] / max(values.sum(), 1e-300), 0.0)))
