"""Prompts with answers: what heads keep of them under masks, and lose with windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime import options
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task


class Answered:
    """The prompts of the task, their questions, and what is measured on them."""

    def __init__(self, capture: xr.Dataset, model: Model, task: Task, seen: int) -> None:
        from headscope.analyses._interventions.next_token_loss import predicts
        from headscope.probes.prompts.reading import read

        options.one_text(capture.attrs.get("attention", "self"), "classes")
        if not predicts(capture):
            raise NotApplicable(
                "model: classes looks for keys far back, and this one has no causal order"
            )
        given = read(model, task)
        assert given.encoded is not None
        if len(given.ids) != capture.sizes["prompt"]:
            raise NotApplicable(
                f"capture: it holds {capture.sizes['prompt']} prompts and the task has "
                f"{len(given.ids)}; capture this task"
            )
        if min(map(len, given.ids)) <= seen:
            raise NotApplicable(
                f"first, recent: a prompt of {min(map(len, given.ids))} tokens lies within the "
                f"{seen} keys of a streaming head; take fewer keys or longer prompts"
            )
        self.capture, self.model, self.ids = capture, model, [list(one) for one in given.ids]
        self.questions = given.encoded.questions

    def places(self, row: int) -> list[int]:
        """Return where a prompt is asked."""
        return [each.at for each in self.questions[row]]

    def loss(self, chosen: Sequence[int], output: Any, rows: Sequence[int]) -> Any:
        """Return −log p of the answers of some prompts, in nats, one number a row."""
        from headscope.analyses._interventions.metrics import score

        return -score(output, [self.questions[chosen[row]] for row in rows], "log_probability")

    def masses(self, share: float, first: int, recent: int) -> NDArray[np.float64]:
        """Return the mass kept under every mask (prompt, mask, layer, head)."""
        from headscope.analyses._measurements.received import weight
        from headscope.analyses.head_roles._masks import frequent, recovered

        received = weight(self.capture)
        special = set(getattr(self.model.tokenizer, "all_special_ids", None) or [])
        grid = (self.model.layers, self.model.heads)
        found = []
        for row, ids in enumerate(self.ids):
            marks = np.array([one in special for one in ids])
            sets = {
                "special": np.broadcast_to(marks, (*grid, len(ids))),
                "first": np.broadcast_to(np.arange(len(ids)) < first, (*grid, len(ids))),
                "frequent": frequent(received[row], len(ids), share),
            }
            found.append(recovered(self.model, ids, sets, recent, first + recent))
        return np.clip(np.stack(found), 0.0, 1.0)

    def windows(
        self,
        rows: list[int],
        streaming: list[tuple[int, int]],
        others: list[tuple[int, int]],
        order: NDArray[np.float64],
        first: int,
        recent: int,
        seed: int,
    ) -> tuple[NDArray[np.float64], str]:
        """Give windows to streaming heads, to as many others, to all (prompt, condition)."""
        import torch

        from headscope.analyses._interventions.causal_check import random_sets
        from headscope.analyses._stats.bootstrap import bootstrap
        from headscope.probes.attention.forward import logits
        from headscope.probes.interventions import Window

        size = min(len(streaming), len(others))
        # The surest streaming heads, where there are fewer others.
        surest = sorted(streaming, key=lambda head: -order[head])[:size]
        drawn = random_sets(others, size, 1, seed)[0]
        groups = ((), surest, drawn, (*streaming, *others))
        result = np.full((len(rows), len(groups)), np.nan)
        for at, row in enumerate(rows):
            for column, heads in enumerate(groups):
                if column and not heads:
                    continue
                edits = (Window(heads=tuple(heads), recent=recent, first=first),) if heads else ()
                with torch.no_grad():
                    output = logits(self.model, torch.tensor([self.ids[row]]), edits)
                    result[at, column] = float(self.loss([row], output, [0]))
        if not size:
            which = "streaming" if streaming else "full"
            return result, f"INCONCLUSIVE: every head is {which}, so there is nothing to compare."
        change, _, _ = bootstrap(result[:, 1:] - result[:, :1], seed=seed)
        apart = bootstrap(result[:, 2] - result[:, 1], seed=seed)[1]
        said = (
            f"with a window the {size} surest of {len(streaming)} streaming heads cost "
            f"{change[0]:+.3f} nats an answer, {size} of {len(others)} others {change[1]:+.3f}."
        )
        if len(rows) < 2:
            return result, f"INCONCLUSIVE (one prompt has no interval): {said}"
        return result, f"{'Causal check agrees' if apart > 0 else 'DISAGREEMENT'}: {said}"
