"""Repeated trials of the discrete-SAE method, each with its baselines."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses.circuits._codes import unique_codes, unique_pairs
from headscope.analyses.circuits._sae import discretize, fit

SHUFFLES = 5

Outputs = Float[Tensor, "prompt head residual"]


class Trials:
    """One trial after another on the same head outputs."""

    def __init__(
        self,
        clean: Outputs,
        corrupted: Outputs,
        pairs: list[tuple[int, int]],
        per_union: bool,
        examples: int,
        settings: dict[str, Any],
    ) -> None:
        self.clean, self.corrupted, self.pairs = clean, corrupted, pairs
        self.per_union, self.examples, self.settings = per_union, examples, settings

    def score(self, generator: torch.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return node (method, head) and edge (method, edge) scores of one trial."""
        clean, corrupted = self.clean, self.corrupted
        both = torch.cat((clean, corrupted))
        chosen = both[torch.randperm(len(both), generator=generator)[: self.examples]]
        start = generator.get_state()
        nodes, links = [], []
        for epochs in (self.settings["epochs"], 0):
            # The untrained dictionary has the very directions that training started from.
            generator.set_state(start)
            settings = {**self.settings, "epochs": epochs}
            dictionary = fit(chosen.flatten(0, 1), **settings, generator=generator)
            codes = discretize(dictionary, both).numpy()
            here, there = codes[: len(clean)], codes[len(clean) :]
            nodes.append(unique_codes(here, there, per_union=self.per_union))
            links.append(self._pairs(here, there))
            if epochs:
                shuffled, shuffled_links = self._shuffled(codes, generator)
        apart = (clean.mean(0) - corrupted.mean(0)).norm(dim=-1).double().numpy()
        product = np.array([apart[source] * apart[target] for source, target in self.pairs])
        return (
            np.stack([*nodes, shuffled, apart]),
            np.stack([*links, shuffled_links, product]),
        )

    def _shuffled(
        self, codes: NDArray[np.int64], generator: torch.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score with the labels mixed, averaged: what a head gains by showing many codes."""
        nodes, links = [], []
        for _ in range(SHUFFLES):
            mixed = codes[torch.randperm(len(codes), generator=generator).numpy()]
            here, there = mixed[: len(self.clean)], mixed[len(self.clean) :]
            nodes.append(unique_codes(here, there, per_union=self.per_union))
            links.append(self._pairs(here, there))
        return np.mean(nodes, axis=0), np.mean(links, axis=0)

    def _pairs(self, here: NDArray[np.int64], there: NDArray[np.int64]) -> NDArray[np.float64]:
        return unique_pairs(here, there, self.pairs, here.shape[1] ** 2 // 2)


def auc(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve; NaN where the truth holds all or nothing.

    >>> import numpy as np
    >>> auc(np.array([True, False, False]), np.array([3.0, 1.0, 2.0]))
    1.0
    """
    if truth.all() or not truth.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores))
