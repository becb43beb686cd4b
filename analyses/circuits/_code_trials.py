"""Repeated trials of the discrete-SAE method, each with its baselines."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses.circuits._codes import information, unique_codes, unique_pairs
from headscope.analyses.circuits._sae import discretize, fit

METHODS = (
    "trained SAE", "untrained SAE", "no SAE", "shuffled labels", "information of codes",
    "mean difference", "attribution",
)  # fmt: skip
TRAINED, SHUFFLED = 0, METHODS.index("shuffled labels")
SHUFFLES = 5
# The dictionary as its authors set it, and the prompts that it is trained on.
FEATURES, EPOCHS, RATE, SPARSITY = 200, 500, 1e-3, 0.02
EXAMPLES = 10

Outputs = Float[Tensor, "prompt head residual"]


class Trials:
    """One trial after another on the same head outputs.

    Without an SAE the code of an output is its largest coordinate, by size. ``attribution`` is a
    score of every head by gradients. The information of trained codes is what they say of the
    label, above its mean over shuffled labels. Methods that score heads alone score an edge by the
    product. ``scaled`` outputs have a mean square of 1.
    """

    def __init__(
        self,
        clean: Outputs,
        corrupted: Outputs,
        attribution: NDArray[np.float64],
        pairs: list[tuple[int, int]],
        per_union: bool,
        examples: int,
        settings: dict[str, Any],
        scaled: bool = False,
    ) -> None:
        if scaled:
            size = torch.cat((clean, corrupted)).square().mean().sqrt().clamp_min(1e-12)
            clean, corrupted = clean / size, corrupted / size
        self.clean, self.corrupted, self.pairs = clean, corrupted, pairs
        self.attribution = attribution
        self.per_union, self.examples, self.settings = per_union, examples, settings

    def score(self, generator: torch.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return node (method, head) and edge (method, edge) scores of one trial."""
        outputs = torch.cat((self.clean, self.corrupted))
        chosen = outputs[torch.randperm(len(outputs), generator=generator)[: self.examples]]
        start = generator.get_state()
        scores = []
        for epochs in (self.settings["epochs"], 0):
            # The untrained dictionary has the very directions that training started from.
            generator.set_state(start)
            settings = {**self.settings, "epochs": epochs}
            dictionary = fit(chosen.flatten(0, 1), **settings, generator=generator)
            codes = discretize(dictionary, outputs).numpy()
            scores.append(self._unique(codes))
            if epochs:
                # With the labels mixed, averaged: what a head gains by showing many codes.
                orders = [
                    torch.randperm(len(codes), generator=generator).numpy() for _ in range(SHUFFLES)
                ]
                mixed = [self._unique(codes[order]) for order in orders]
                chance = [self._bits(codes[order]) for order in orders]
                bits = self._bits(codes) - np.mean(chance, axis=0)
        scores.append(self._unique(outputs.abs().argmax(-1).numpy()))
        scores.append(tuple(np.mean(part, axis=0) for part in zip(*mixed, strict=True)))
        distance = (self.clean.mean(0) - self.corrupted.mean(0)).norm(dim=-1).double().numpy()
        for heads in (bits, distance, self.attribution):
            ends = heads.clip(0)[np.array(self.pairs)]
            scores.append((heads, ends.prod(1)))
        nodes, links = zip(*scores, strict=True)
        return np.stack(nodes), np.stack(links)

    def _bits(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what codes say of the side, those of the clean prompts first."""
        return information(codes[: len(self.clean)], codes[len(self.clean) :])

    def _unique(self, codes: NDArray[np.int64]) -> tuple[Any, ...]:
        """Return node and edge scores of codes, those of the clean prompts first."""
        positive, negative = codes[: len(self.clean)], codes[len(self.clean) :]
        nodes = unique_codes(positive, negative, per_union=self.per_union)
        return nodes, unique_pairs(positive, negative, self.pairs, positive.shape[1] ** 2 // 2)


def auc(
    truth: NDArray[np.bool_],
    scores: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Return the area under the ROC curve; NaN where the truth holds all or nothing.

    Weights say for how many each stands; where they are NaN it is not known what is true.
    """
    if weights is not None:
        present = ~np.isnan(weights)
        truth, scores, weights = truth[present], scores[present], weights[present]
    if truth.all() or not truth.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores, sample_weight=weights))
