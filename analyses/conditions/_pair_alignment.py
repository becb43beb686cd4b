"""Positions of one prompt in another that shares its start and its end, as two instructions do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable


@dataclass(frozen=True)
class Alignment:
    """Positions of the tokens of prompt A in prompt B.

    ``first_positions`` are those of A that B has too, ``second_positions`` where they stand in B.
    What is left of A, ``extra``, is its instruction; what is left of B is B's.
    """

    first_positions: NDArray[np.int64]
    second_positions: NDArray[np.int64]
    extra: NDArray[np.int64]

    def queries(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in B of queries of A."""
        if not np.isin(positions, self.first_positions).all():
            raise NotApplicable(
                "task: a question stands inside what differs between prompts of different length; "
                "let both end in the same words"
            )
        return self.second_positions[np.searchsorted(self.first_positions, positions)]

    def onto(self, rows: Array, others: Array) -> Array:
        """Map rows of B onto the keys of A (head, row, key), given those of A.

        What B gives to its own instruction is shared among the tokens of A's as A shares it.
        """
        laid = np.zeros_like(rows)
        laid[..., self.first_positions] = others[..., self.second_positions]
        if len(self.extra):
            part = rows[..., self.extra]
            total = part.sum(-1, keepdims=True)
            even = np.full_like(part, 1 / len(self.extra))
            shares = np.divide(part, total, out=even, where=total > 0)
            spare = others.sum(-1, keepdims=True) - laid.sum(-1, keepdims=True)
            laid[..., self.extra] = shares * spare.clip(0)
        return laid


def align(first: Sequence[int], second: Sequence[int]) -> Alignment:
    """Align two prompts: position by position where they are as long, else by start and end.

    >>> pairs = align([0, 5, 6, 9, 8], [0, 7, 9, 8])
    >>> pairs.first_positions.tolist(), pairs.second_positions.tolist(), pairs.extra.tolist()
    ([0, 3, 4], [0, 2, 3], [1, 2])
    """
    length, shorter = len(first), min(len(first), len(second))
    if length == len(second):
        return Alignment(np.arange(length), np.arange(length), np.arange(0))
    start = next((at for at in range(shorter) if first[at] != second[at]), shorter)
    common = 0
    while common < shorter - start and first[-1 - common] == second[-1 - common]:
        common += 1
    unmatched = np.arange(start, length - common)
    if not len(unmatched):
        raise NotApplicable(
            "task: a prompt has nothing where its counterfactual has more words; swap the two"
        )
    first_positions = np.delete(np.arange(length), unmatched)
    second_positions = np.delete(np.arange(len(second)), np.arange(start, len(second) - common))
    return Alignment(first_positions, second_positions, unmatched)
