"""ACDC: edges that can go one after another, from the logits backwards, without a change of output.

Source: Conmy et al., Towards Automated Circuit Discovery for Mechanistic Interpretability
(2304.14997).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions.edge_patching import EdgeRun, patching, score

if TYPE_CHECKING:
    from headscope.analyses._interventions.ablation import Measure
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
    where, beside those that have gone, the Kullback–Leibler divergence from the clean model's
    prediction at the asked positions rises by less than ``threshold`` nats, averaged over prompts.
    With ``candidates`` all other edges have gone beforehand.
    """
    with patching(model, task) as split:
        graph = split.graph
        runs = list(split.batches())
        weight = np.array([len(prompts) for prompts, _ in runs]) / len(task)

        def divergence(removed: Mask) -> NDArray[np.float64]:
            """Return the mean divergence of every set of removed edges (set,)."""
            each = [score(run, _divergence(run), prompts, removed) for prompts, run in runs]
            return np.asarray(sum(w * one.mean(0) for w, one in zip(weight, each, strict=True)))

        kept = graph.edges if candidates is None else graph.reduced(candidates)
        removed = graph.edges & ~kept
        level = float(divergence(removed[None])[0])
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
                some = waiting[:TRIED]
                tried = np.repeat(removed[None], len(some), 0)
                for number, source in enumerate(some):
                    tried[number:, target, source] = True
                levels = [level, *divergence(tried).tolist()]
                rises = np.diff(levels)
                stays = int(np.argmax(rises >= threshold)) if (rises >= threshold).any() else None
                gone = some if stays is None else some[:stays]
                removed[target, gone] = True
                kept[target, gone] = False
                level = levels[len(gone)]
                waiting = waiting[len(gone) + (stays is not None) :]
        return graph.reduced(kept)


def _divergence(run: EdgeRun) -> Measure:
    clean = run.clean_logits.log_softmax(-1)

    def measure(
        logits: Tensor, prompts: Sequence[int], positions: Sequence[Sequence[int]]
    ) -> Tensor:
        own = clean.repeat(len(logits) // len(clean), 1, 1)
        return torch.nn.functional.kl_div(
            logits.log_softmax(-1), own, log_target=True, reduction="none"
        ).sum(-1).mean(-1)  # fmt: skip

    return measure
