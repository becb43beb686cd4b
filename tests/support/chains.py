"""Transformers trained on chains of references, a minimal form of the retrieval problem.

A text is a list of pairs, a name and what it stands for: a value, or a name given before. At the
second word of every pair the model is asked for the value at the end of the chain that begins
there. Chains of no, one, two and more steps are asked side by side: the implicit curriculum of
Musat, Mechanism and Emergence of Stacked Attention Heads (2411.12118), in which longer chains build
on heads that shorter ones have made.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

NAMES, VALUES, PAIRS = 8, 8, 7
WORDS = NAMES + VALUES + 1
BOS = WORDS - 1
LENGTH = 2 * PAIRS + 1
BATCH = 128


class Rows(NamedTuple):
    """Texts (row, LENGTH); of every pair (row, PAIRS) the value at the end of its chain, the
    number of steps to it, and the pair that its second word refers to (-1: none)."""

    ids: Tensor
    values: Tensor
    steps: Tensor
    refers: Tensor


def draw(rows: int, generator: torch.Generator, *, linked: float = 0.7) -> Rows:
    """Draw texts, in which a pair refers to an earlier one with the chance `linked`."""
    names = torch.stack([torch.randperm(NAMES, generator=generator)[:PAIRS] for _ in range(rows)])
    stated = torch.randint(NAMES, NAMES + VALUES, (rows, PAIRS), generator=generator)
    refers = torch.full((rows, PAIRS), -1)
    values, steps, row = stated.clone(), torch.zeros(rows, PAIRS, dtype=torch.long), torch.arange(rows)
    for pair in range(1, PAIRS):
        link = torch.rand(rows, generator=generator) < linked
        earlier = torch.randint(pair, (rows,), generator=generator)
        refers[:, pair] = torch.where(link, earlier, -1)
        stated[:, pair] = torch.where(link, names[row, earlier], stated[:, pair])
        values[:, pair] = torch.where(link, values[row, earlier], values[:, pair])
        steps[:, pair] = torch.where(link, steps[row, earlier] + 1, 0)
    ids = torch.full((rows, LENGTH), BOS)
    ids[:, 1::2], ids[:, 2::2] = names, stated
    return Rows(ids, values, steps, refers)
