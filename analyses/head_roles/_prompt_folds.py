"""Folds: the positions of some prompts in a row, in parts that share no text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions.next_token_loss import tokens
from headscope.kernels.errors import NotApplicable


@dataclass(frozen=True, eq=False)
class Folds:
    """All positions of some prompts, one after another, with their prompt and fold (position,).

    ``inside`` marks which positions of a padded array (prompt, query) they are.
    """

    prompt: Int[Tensor, " position"]
    fold: Int[Tensor, " position"]
    inside: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def rows(self, array: xr.DataArray) -> Tensor:
        """Flatten an array (prompt, query, ...) to (position, ...)."""
        return torch.from_numpy(np.ascontiguousarray(array.values[self.inside]))

    def draw(self, count: int, seed: int) -> Int[Tensor, " drawn"]:
        """Draw up to ``count`` positions of every prompt, in order."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.prompt), generator=generator)
        by_prompt = order[self.prompt[order].argsort(stable=True)]
        starts = torch.bincount(self.prompt).cumsum(0) - torch.bincount(self.prompt)
        offset = torch.arange(len(order)) - starts[self.prompt[by_prompt]]
        return by_prompt[offset < count].sort().values

    def by_prompt(
        self, values: Float[Tensor, " some"], at: Int[Tensor, " some"]
    ) -> Float[Tensor, " prompt"]:
        """Average what some positions have over each prompt; NaN where it has none of them."""
        owner, count = self.prompt[at], len(self.inside)
        total = torch.zeros(count, dtype=torch.float64).index_add(0, owner, values.double())
        return total / torch.bincount(owner, minlength=count)


def cut(capture: xr.Dataset, count: int, seed: int) -> Folds:
    """Split the prompts of a capture into random folds; prompts of one text are in one fold."""
    texts = [tuple(ids) for ids in tokens(capture)]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    if len(numbers) < 2:
        raise NotApplicable(
            "prompts: what is fitted to some is judged on others; give 2 different texts or more"
        )
    fold = np.random.default_rng(seed).permutation(len(numbers)) % min(count, len(numbers))
    lengths = np.array([len(text) for text in texts])
    prompt = np.repeat(np.arange(len(texts)), lengths)
    of_prompt = np.array([fold[numbers[text]] for text in texts])
    inside = np.arange(capture.sizes["query"]) < lengths[:, None]
    return Folds(torch.from_numpy(prompt), torch.from_numpy(of_prompt[prompt]), inside)
