"""Overlap: how much two circuits share, compared with chance."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime.results import SHARE, ZERO_TO_ONE, Results, label
from headscope.analyses._stats.bootstrap import Array, draws, percentiles
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.comparison.circuit import Circuit
from headscope.kernels.errors import InvalidInput
from headscope.kernels.formatting import amount

RESAMPLES = 1000
SOURCE = "Merullo et al., Circuit Component Reuse Across Tasks in Transformer Language Models"


# Name, title, units, scale and bounds of what is resampled.
SHARED: tuple[tuple[Any, ...], ...] = (
    ("jaccard", "Shared heads of the heads of either", *SHARE),
    ("coefficient", "Shared heads of the smaller circuit", *SHARE),
    ("correlation", "Agreement of the scores of all heads", "Spearman ρ", "diverging", -1, 1),
)


def overlap(first: Circuit, second: Circuit, *, seed: int = 0) -> xr.Dataset:
    """Return how much two circuits share: heads, chance, and the ranks of all scores.

    Returns
    -------
    Dataset with ``jaccard`` (shared heads over heads of either), ``coefficient`` (shared heads over
    the smaller circuit), ``shared`` (heads), ``expected`` (shared heads of two random sets of these
    sizes), ``p_value`` (chance that random sets share as many, hypergeometric), ``correlation``
    (Spearman's ρ of the scores over all heads) and ``member`` (layer, head; 0 in neither, 1 in the
    first, 2 in the second, 3 in both). Where both circuits have samples, the first two and the
    correlation have 95 % intervals: prompts are resampled (together where they are the same), and
    each circuit is chosen anew as its highest scores. Circuits of edges also have ``edge_jaccard``,
    ``shared_edges``, ``expected_edges`` (of two random sets of edges of these sizes),
    ``edge_p_value`` and ``same_sign`` (share of the shared edges whose scores have one sign).

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.array([[4.0, 3.0], [2.0, 1.0]])
    >>> first, second = Circuit(((0, 0), (0, 1)), scores), Circuit(((0, 0), (1, 0)), scores)
    >>> result = overlap(first, second)
    >>> float(result["jaccard"]), float(result["expected"]), round(float(result["p_value"]), 4)
    (0.3333333333333333, 1.0, 0.8333)
    """
    from scipy.stats import hypergeom

    if first.scores.shape != second.scores.shape:
        raise InvalidInput(
            f"scores: {first.scores.shape} layers and heads in the first circuit and "
            f"{second.scores.shape} in the second; heads cannot be matched"
        )
    measured = ~np.isnan(first.scores)
    if bool((measured != ~np.isnan(second.scores)).any()):
        raise InvalidInput(
            "scores: the circuits have scores of different heads, so no common whole"
        )
    shared = sorted(set(first.heads) & set(second.heads))
    sizes, total = (len(first.heads), len(second.heads)), int(measured.sum())
    rho = ranked(first.scores[measured], second.scores[measured])
    point = len(shared) / len({*first.heads, *second.heads}), len(shared) / min(sizes), rho
    sizes_note = f"{sizes[0]} and {sizes[1]} of {total} heads"
    results = Results(xr.Dataset(), seed=seed)
    ends = _intervals(first, second, measured, seed)
    for (name, *meaning), *numbers in zip(SHARED, point, *ends, strict=True):
        results.add_interval(name, (), numbers, *meaning, convention=sizes_note, source=SOURCE)
    p_value = float(hypergeom.sf(len(shared) - 1, total, *sizes))
    expected = sizes[0] * sizes[1] / total
    member = np.where(measured, 0.0, np.nan)
    for number, circuit in ((1, first), (2, second)):
        for head in circuit.heads:
            member[head] += number
    results.add_all(
        ("shared", (), float(len(shared)), "Shared heads", ("heads", "sequential", 0)),
        ("expected", (), expected, "Heads that random sets share", ("heads", "sequential", 0),
         sizes_note),
        ("p_value", (), p_value, "Chance of sharing as many at random",
         ("probability", *ZERO_TO_ONE), f"hypergeometric, one-sided; {sizes_note}"),
        ("member", ("layer", "head"), member, "Circuit that holds the head",
         ("1 first, 2 second, 3 both", "sequential", 0, 3)),
    )  # fmt: skip
    note = _compare_edges(results, first, second)
    return xr.Dataset(
        results.variables,
        coords={"layer": np.arange(member.shape[0]), "head": np.arange(member.shape[1])},
        attrs={
            "first": dict(first.provenance), "second": dict(second.provenance), "seed": seed,
            "shared_heads": [label(head) for head in shared],
            "note": f"{len(shared)} shared heads, {amount(expected)} expected of random sets "
            f"(p = {amount(p_value)}); ranks of all heads agree with ρ {amount(rho)}.{note}",
        },
    )  # fmt: skip


def _compare_edges(results: Results, first: Circuit, second: Circuit) -> str:
    """Add what two circuits of edges share, and say it."""
    from scipy.stats import hypergeom

    if not (first.edges and second.edges):
        return ""
    totals = {int(circuit.provenance.get("edges", 0)) for circuit in (first, second)}
    if len(totals) > 1 or not totals - {0}:
        raise InvalidInput(
            "edges: the provenance of both circuits has to say how many edges the model has, the "
            "same number; make them with from_result"
        )
    shared = [name for name in first.edges if name in second.edges]
    sizes, total = (len(first.edges), len(second.edges)), totals.pop()
    expected = sizes[0] * sizes[1] / total
    p_value = float(hypergeom.sf(len(shared) - 1, total, *sizes))
    same_sign = [first.edges[name] * second.edges[name] > 0 for name in shared]
    sizes_note = f"{sizes[0]} and {sizes[1]} of {total} edges"
    counted = ("edges", "sequential", 0)
    results.add_all(
        ("edge_jaccard", (), len(shared) / (sum(sizes) - len(shared)),
         "Shared edges of the edges of either", SHARE, sizes_note),
        ("shared_edges", (), float(len(shared)), "Shared edges", counted, sizes_note),
        ("expected_edges", (), expected, "Edges that random sets share", counted, sizes_note),
        ("edge_p_value", (), p_value, "Chance of sharing as many edges at random",
         ("probability", *ZERO_TO_ONE), f"hypergeometric, one-sided; {sizes_note}"),
        ("same_sign", (), float(np.mean(same_sign)) if same_sign else np.nan,
         "Shared edges of one sign", SHARE, sizes_note),
    )  # fmt: skip
    return (
        f" {len(shared)} shared edges, {amount(expected)} expected of random sets "
        f"(p = {amount(p_value)})."
    )


def _intervals(
    first: Circuit, second: Circuit, measured: NDArray[np.bool_], seed: int
) -> tuple[Array, Array]:
    """Resample prompts, choose both circuits anew, and return both ends of the three numbers."""
    missing = np.full(3, np.nan)
    if first.samples is None or second.samples is None:
        return missing, missing
    first_scores, second_scores = first.samples[:, measured], second.samples[:, measured]
    if min(len(first_scores), len(second_scores)) < 2:
        return missing, missing
    digests = [circuit.provenance.get("prompts_sha256") for circuit in (first, second)]
    paired = (
        digests[0] is not None
        and digests[0] == digests[1]
        and len(first_scores) == len(second_scores)
    )
    first_weights = draws(len(first_scores), RESAMPLES, seed) / len(first_scores)
    second_weights = (
        first_weights
        if paired
        else draws(len(second_scores), RESAMPLES, seed + 1) / len(second_scores)
    )
    sizes = len(first.heads), len(second.heads)
    resampled = np.empty((RESAMPLES, 3))
    for row, pair in enumerate(
        zip(first_weights @ first_scores, second_weights @ second_scores, strict=True)
    ):
        tops = [
            set(np.argsort(-scores, kind="stable")[:size].tolist())
            for scores, size in zip(pair, sizes, strict=True)
        ]
        shared = len(tops[0] & tops[1])
        resampled[row] = shared / len(tops[0] | tops[1]), shared / min(sizes), ranked(*pair)
    return percentiles(resampled, 0.025)
