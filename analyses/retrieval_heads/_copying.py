"""Copy scores of heads at the decode steps of a planted needle."""

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray


def copied(
    attended: NDArray[np.int64],
    generated: NDArray[np.int64],
    ids: NDArray[np.int64],
    needle: tuple[int, ...],
) -> NDArray[np.bool_]:
    """Return at which decode steps a head copies a needle token (step, layer, head).

    A head copies at a step when (a) the largest weight of its last row lies on a position of the
    needle and (b) the token there is the one that the model generates.
    ``attended`` is the position with the largest weight (step, layer, head), ``generated`` the
    token that the model generates (step,), ``needle`` the positions of the needle's tokens.

    Source: Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (2404.15574).
    """
    inside = np.isin(attended, needle)
    return np.asarray(inside & (ids[attended] == generated[:, None, None]))


def set_score(
    copies: NDArray[np.bool_], generated: NDArray[np.int64], needle_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return ``|g ∩ k| / |k|`` (layer, head): the share of distinct needle tokens copied, 0 to 1.

    The definition of the paper: g is the set of tokens that the head copied, k the needle's.
    """
    distinct = np.unique(needle_ids)
    hits = [copies[generated == token].any(0) for token in distinct]
    return np.asarray(np.mean(hits, axis=0))


def multiset_score(copies: NDArray[np.bool_], needle_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the number of copy steps over the needle's length (layer, head); can exceed 1.

    What the released code computes: every copying step adds ``1 / |needle|``, also when the same
    token is copied again.
    """
    return np.asarray(copies.sum(0) / len(needle_ids))


def rouge_1_recall(reference: Iterable[Hashable], candidate: Iterable[Hashable]) -> float:
    """Return the share of the reference's words that the candidate has, each as often as it does.

    ROUGE-1 recall (Lin 2004), without stemming.

    >>> rouge_1_recall("police killed the gunman".split(), "the gunman kill police".split())
    0.75
    """
    counts = Counter(reference)
    return (counts & Counter(candidate)).total() / counts.total()
