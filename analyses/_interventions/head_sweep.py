"""Sweeps: sets of heads taken out one after the other, many in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._interventions.prefix_reuse import Passes
from headscope.analyses._interventions.row_outputs import taking_out
from headscope.probes.attention.forward import logits
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]
Measure = Callable[[Tensor, Sequence[Any], Sequence[int]], Tensor]

# Tokens in one forward pass: more gain little time on a processor (benchmarks/ablation.py) and take
# memory. Numbers in its logits, and numbers kept of the residual stream.
TOKENS, DEVICE_TOKENS, NUMBERS, KEPT = 2048, 8192, 2**26, 2**27


def every_head(model: Model) -> Bool[Tensor, "set layer head"]:
    """Return the sets of one head each, in order, of the layers that have an attention map."""
    layers, width = model.layers, model.heads
    single = torch.eye(layers * width, dtype=torch.bool).reshape(layers, width, layers, width)
    return single[model.geometry.attending].flatten(0, 1)


def every_group(model: Model) -> Bool[Tensor, "set layer head"]:
    """Return the sets of the query heads that share one KV head, in order."""
    group = model.heads // model.kv_heads
    single = every_head(model)
    return single.reshape(-1, group, *single.shape[1:]).any(1)


def no_head(model: Model) -> Bool[Tensor, "set layer head"]:
    """Return one set without heads: the intact model."""
    return torch.zeros(1, model.layers, model.heads, dtype=torch.bool)


def swept(
    model: Model,
    ids: Sequence[Sequence[int]],
    asked: Sequence[Sequence[Any]],
    measures: Sequence[Measure],
    chosen: Bool[Tensor, "set layer head"],
    values: Float[Tensor, ...] | None = None,
    *,
    first: int = 0,
    whole: bool = False,
    progress: Progress | None = None,
) -> Array:
    """Take each set of heads out in turn and return all measures (measure, prompt, set).

    Parameters
    ----------
    model
        The model.
    ids, asked
        Token ids of every prompt, and its questions.
    measures
        Each is called with logits of a batch, the questions of its rows, and which prompts these
        are; it returns one number a row.
    chosen
        The sets.
    values
        What is put in place of a head's output: one vector a head (layer, head, size), or the
        outputs on other prompts (prompt, layer, head, query, size); zero without them.
    first
        First position that is edited.
    whole
        Give the measures the logits of all positions, of whole passes. Without it passes begin at
        the first layer of the set, and measures see the asked positions alone.
    progress
        Called with (done, total) sets times prompts.
    """
    result = np.full((len(measures), len(ids), len(chosen)), np.nan)
    starts = chosen.any(-1).int().argmax(-1)
    total, done = len(ids) * len(chosen), 0
    width = model.vocabulary if whole else 1
    most = TOKENS if model.device.type == "cpu" else DEVICE_TOKENS
    for rows in batches(ids, _room(model)):
        given = torch.tensor([ids[row] for row in rows])
        questions: Sequence[Sequence[Any]] = [asked[row] for row in rows]
        passes = None if whole else Passes(model, given, questions)
        together = max(1, min(most, NUMBERS // width) // given.numel())
        for layer in sorted(set(starts.tolist())):
            for some in (starts == layer).nonzero().flatten().split(together):
                edit = taking_out(
                    chosen[some].repeat_interleave(len(rows), dim=0),
                    values if values is None or values.ndim == 3 else values[rows],
                    first,
                )
                times = len(some)
                with torch.no_grad():
                    put: Sequence[Any]
                    if passes is None:
                        output = logits(model, given.repeat(times, 1), (edit,))
                        put = [*questions] * times
                    else:
                        output = passes.logits(layer, (edit,), times)
                        put = passes.asked * times
                    for number, one in enumerate(measures):
                        scores = one(output, put, rows * times).cpu().numpy()
                        result[number][np.ix_(rows, some.numpy())] = scores.reshape(times, -1).T
                done += times * len(rows)
                if progress is not None:
                    progress(done, total)
    return result


def _room(model: Model) -> int:
    """Return how many tokens a batch of prompts may have, so that its stream can be kept."""
    width = int(model.module.config.get_text_config().hidden_size)
    return max(1, min(TOKENS, KEPT // ((model.layers + 1) * width)))
