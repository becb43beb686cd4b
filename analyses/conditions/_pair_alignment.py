"""Positions of one prompt in another that shares its start and its end, as two instructions do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable


@dataclass(frozen=True)
class Alignment:
    """Where the tokens of prompt A stand in prompt B.

    ``here`` are the positions of A that B has too, ``there`` where they stand in B. What is left of
    A, ``own``, is its instruction; what is left of B is B's.
    """

    here: NDArray[np.int64]
    there: NDArray[np.int64]
    own: NDArray[np.int64]

    def queries(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in B of queries of A."""
        if not np.isin(places, self.here).all():
            raise NotApplicable(
                "task: a question stands inside what differs between prompts of different length; "
                "let both end in the same words"
            )
        return self.there[np.searchsorted(self.here, places)]

    def onto(self, rows: Array, others: Array) -> Array:
        """Lay rows of B over the keys of A (head, row, key), given those of A.

        What B gives to its own instruction is shared among the tokens of A's as A shares it.
        """
        laid = np.zeros_like(rows)
        laid[..., self.here] = others[..., self.there]
        if len(self.own):
            part = rows[..., self.own]
            total = part.sum(-1, keepdims=True)
            even = np.full_like(part, 1 / len(self.own))
            shares = np.divide(part, total, out=even, where=total > 0)
            spare = others.sum(-1, keepdims=True) - laid.sum(-1, keepdims=True)
            laid[..., self.own] = shares * spare.clip(0)
        return laid


def align(one: Sequence[int], other: Sequence[int]) -> Alignment:
    """Align two prompts: position by position where they are as long, else by start and end.

    >>> found = align([0, 5, 6, 9, 8], [0, 7, 9, 8])
    >>> found.here.tolist(), found.there.tolist(), found.own.tolist()
    ([0, 3, 4], [0, 2, 3], [1, 2])
    """
    length, shorter = len(one), min(len(one), len(other))
    if length == len(other):
        return Alignment(np.arange(length), np.arange(length), np.arange(0))
    start = next((at for at in range(shorter) if one[at] != other[at]), shorter)
    same = 0
    while same < shorter - start and one[-1 - same] == other[-1 - same]:
        same += 1
    own = np.arange(start, length - same)
    if not len(own):
        raise NotApplicable(
            "task: a prompt has nothing where its counterfactual has more words; swap the two"
        )
    here = np.delete(np.arange(length), own)
    there = np.delete(np.arange(len(other)), np.arange(start, len(other) - same))
    return Alignment(here, there, own)
