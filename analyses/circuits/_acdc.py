"""ACDC: edges that can go one after another, from the logits backwards, without a change of output.

Source: Conmy et al., Towards Automated Circuit Discovery for Mechanistic Interpretability
(2304.14997).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions.edge_patching import patching, score

if TYPE_CHECKING:
    from headscope.analyses._interventions.ablation import Measure
    from headscope.analyses._interventions.edge_patching import EdgePatching
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

Mask = NDArray[np.bool_]
# Edges that are tried together.
TRIED = 16


def discover(
    model: Model, task: EncodedTask, threshold: float, candidates: Mask | None = None
) -> Mask:
    """Return the edges that are left (target, source).

    Targets are visited from the logits backwards, of each the latest source first. An edge goes
    where, beside those that have gone, `divergence` rises by less than ``threshold`` nats. With
    ``candidates`` all other edges have gone beforehand.
    """
    with patching(model, task) as split:
        graph = split.graph
        kept = graph.edges if candidates is None else graph.reduced(candidates)
        removed = graph.edges & ~kept
        level = float(divergence(split, removed[None])[0])
        for target, owner in reversed([*enumerate(graph.owners)]):
            read = owner not in graph.sources or kept[:, graph.sources.index(owner)].any()
            if not read:  # what nothing reads may read anything
                kept[target] = False
                removed[target] = graph.edges[target]
                continue
            waiting = np.flatnonzero(kept[target])[::-1].tolist()
            while waiting:
                # All at once, the second beside the first and so on: right up to the first that
                # stays, behind which they are tried again.
                tried = waiting[:TRIED]
                sets = np.repeat(removed[None], len(tried), 0)
                for number, source in enumerate(tried):
                    sets[number:, target, source] = True
                levels = [level, *divergence(split, sets).tolist()]
                stays = ~(np.diff(levels) < threshold)
                count = int(stays.argmax()) if stays.any() else len(tried)
                gone = tried[:count]
                removed[target, gone] = True
                kept[target, gone] = False
                level = levels[count]
                waiting = waiting[count + int(stays.any()) :]
        return graph.reduced(kept)


def corrupted_divergence(model: Model, task: EncodedTask) -> float:
    """Return `divergence` with every edge removed: that of the corrupted prompts."""
    with patching(model, task) as split:
        return float(divergence(split, split.graph.edges[None])[0])


def divergence(
    split: EdgePatching, removed: Bool[np.ndarray, "variant target source"]
) -> Float[np.ndarray, " variant"]:
    """Return how far sets of removed edges move the prediction at the question positions, in nats.

    The Kullback–Leibler divergence from the clean model's prediction, averaged over the positions
    of a prompt and over prompts.
    """
    total = np.zeros(len(removed))
    for prompts, run in split.batches():
        total += score(run, _divergence_from(run.clean_logits), prompts, removed).sum(0)
        del run
    return total / len(split.task)


def _divergence_from(logits: Float[Tensor, "row question vocab"]) -> Measure:
    clean = logits.log_softmax(-1)

    def measure(
        logits: Tensor, prompts: Sequence[int], positions: Sequence[Sequence[int]]
    ) -> Tensor:
        own = clean.repeat(len(logits) // len(clean), 1, 1)
        return torch.nn.functional.kl_div(
            logits.log_softmax(-1), own, log_target=True, reduction="none"
        ).sum(-1).mean(-1)  # fmt: skip

    return measure
