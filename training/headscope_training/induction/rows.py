"""Training rows of the series: pairs of words that follow each other, and words said again."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from headscope_training.recipe import Batch, random_repeats
from headscope_training.words import SPECIAL, vocabulary

SEED = 7
LENGTH = 96
BATCH = 48
# Share of the rows that repeat random words, and the longest stretch that is said again.
REPEATED = 0.5
PERIODS = (4, 40)
SUCCESSORS = 8


@cache
def successors() -> tuple[Tensor, Tensor]:
    """Return successors of each word (word, rank), and their frequency by rank: Zipf's law, twice.

    Few words follow any given one, and the first of them most often; frequent words follow many.
    """
    first, size = len(SPECIAL), len(vocabulary())
    generator = torch.Generator().manual_seed(SEED)
    frequency = 1 / torch.arange(1, size - first + 1)
    order = torch.randperm(size - first, generator=generator)
    drawn = [
        torch.multinomial(frequency, SUCCESSORS, generator=generator) for _ in range(size - first)
    ]
    shares = 1 / torch.arange(1, SUCCESSORS + 1)
    return order[torch.stack(drawn)] + first, shares / shares.sum()


def text(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Rows in which every word depends on the one before it alone (row, length)."""
    after, shares = successors()
    first = len(SPECIAL)
    words = torch.randint(first, len(after) + first, (rows,), generator=generator)
    columns = [words]
    for _ in range(length - 1):
        ranks = torch.multinomial(shares, rows, replacement=True, generator=generator)
        words = after[words - first, ranks]
        columns.append(words)
    return torch.stack(columns, 1)


def repeated(period: int, length: int, generator: torch.Generator) -> Tensor:
    """Random words, all of them alike frequent, said again and again (length,)."""
    return random_repeats(len(SPECIAL), len(vocabulary()), period, length, generator)


def draw(generator: torch.Generator) -> Batch:
    """Rows of one step, ``<bos>`` first.

    The first time of words that come again cannot be foreseen, so it does not count.
    """
    ids = text(BATCH, LENGTH, generator)
    weights = torch.ones(BATCH, LENGTH)
    weights[:, 0] = 0
    for row in range(round(REPEATED * BATCH)):
        period = int(torch.randint(PERIODS[0], PERIODS[1] + 1, (), generator=generator))
        ids[row], weights[row, :period] = repeated(period, LENGTH, generator), 0
    return Batch(functional.pad(ids, (1, 0)), weights)
