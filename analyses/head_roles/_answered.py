"""Prompts with answers: what heads keep of them under masks, and lose with windows."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from headscope.analyses._interventions.causal_check import Head, random_sets
from headscope.analyses._interventions.metrics import score
from headscope.analyses._interventions.next_token_loss import predicts
from headscope.analyses._measurements.received import weight
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap
from headscope.analyses.head_roles._candidates import read_task
from headscope.analyses.head_roles._masks import frequent, recovered
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Window
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task


class Answered:
    """The prompts of the task, their questions, and what is measured on them."""

    def __init__(self, capture: xr.Dataset, model: Model, task: Task, near: int) -> None:
        if not predicts(capture):
            raise NotApplicable(
                "model: classes needs keys far back, and this one has no causal order"
            )
        encoded = read_task(capture, model, task)
        shortest = min(map(len, encoded.ids))
        if shortest <= near:
            raise NotApplicable(
                f"first, recent: a prompt of {shortest} tokens lies within the {near} keys of a "
                "streaming head; take fewer keys or longer prompts"
            )
        self.capture, self.model = capture, model
        self.ids = [list(ids) for ids in encoded.ids]
        self.questions = encoded.questions
        self.question_positions = encoded.question_positions

    def loss(
        self,
        chosen: Sequence[int],
        output: Tensor,
        rows: Sequence[int],
        positions: Sequence[Sequence[int]],
    ) -> Tensor:
        """Return −log p of the answers of some prompts, in nats, one number a row.

        ``output`` has their logits at some positions; a row is one of the ``chosen`` prompts.
        """
        questions = [self.questions[chosen[row]] for row in rows]
        return -score(output, questions, "log_probability", positions)

    def masses(self, share: float, first: int, recent: int) -> Array:
        """Return the mass kept under every mask (prompt, mask, layer, head)."""
        received = weight(self.capture)
        special = set(getattr(self.model.tokenizer, "all_special_ids", None) or [])
        grid = (self.model.layers, self.model.heads)
        masses = []
        for row, ids in enumerate(self.ids):
            marks = np.array([token in special for token in ids])
            sets = {
                "special": np.broadcast_to(marks, (*grid, len(ids))),
                "first": np.broadcast_to(np.arange(len(ids)) < first, (*grid, len(ids))),
                "frequent": frequent(received[row], len(ids), share),
            }
            masses.append(recovered(self.model, ids, sets, recent, first + recent))
        return np.clip(np.stack(masses), 0.0, 1.0)

    def windows(
        self,
        rows: list[int],
        streaming: list[Head],
        others: list[Head],
        order: Array,
        first: int,
        recent: int,
        seed: int,
    ) -> tuple[Array, Verdict]:
        """Restrict to windows: streaming heads, as many others, or all (prompt, condition)."""
        size = min(len(streaming), len(others))
        # The surest streaming heads, where there are fewer others.
        surest = sorted(streaming, key=lambda head: -order[head])[:size]
        drawn = random_sets(others, size, 1, seed)[0]
        groups = ((), surest, drawn, (*streaming, *others))
        loss = np.full((len(rows), len(groups)), np.nan)
        for at, row in enumerate(rows):
            for column, heads in enumerate(groups):
                if column and not heads:
                    continue
                edits = (Window(heads=tuple(heads), recent=recent, first=first),) if heads else ()
                with torch.no_grad():
                    positions = [self.question_positions[row]]
                    output = logits(
                        self.model, torch.tensor([self.ids[row]]), edits, torch.tensor(positions)
                    )
                    loss[at, column] = float(self.loss([row], output, [0], positions))
        if not size:
            kind = "streaming" if streaming else "full"
            text = f"Every head is {kind}, so there is nothing to compare."
            return loss, Verdict("too_few", text)
        change, _, _ = bootstrap(loss[:, 1:] - loss[:, :1], seed=seed)
        text = (
            f"with a window the {size} surest of {len(streaming)} streaming heads cost "
            f"{amount(change[0], '+')} nats an answer, {size} of {len(others)} others "
            f"{amount(change[1], '+')}"
        )
        return loss, causal_verdict(loss[:, 2] - loss[:, 1], text)
