"""The head that is asked about, and the query and key of every prompt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from headscope.analyses._interventions.head_gradients import gate_gradient
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.results import attending, top
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.interventions.base import check_heads

if TYPE_CHECKING:
    import xarray as xr

    from headscope.analyses._stats.bootstrap import Array
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

Head = tuple[int, int]
RULE = "key: the most attended one of the asked position, the first token left out"


def asked(task: EncodedTask) -> Array:
    """Return the position of the last question of every prompt (prompt,)."""
    places = np.array([questions[-1].at for questions in task.questions])
    if (places < 1).any():
        raise NotApplicable("task: a prompt asks at its first token, which sees no other key")
    return places


def weights_at(capture: xr.Dataset, prompt: int, layer: int, query: int) -> Array:
    """Return the weights of one query of all heads of a layer (head, key)."""
    return qk_rows.rows(capture, prompt, layer, np.array([query])).weights()[:, 0]


def attended(weights: Array) -> tuple[int, float]:
    """Return the most attended key but the first, and its weight (key,).

    >>> attended(np.array([0.6, 0.1, 0.3]))
    (2, 0.3)
    """
    key = 1 + int(np.argmax(weights[1:]))
    return key, float(weights[key])


def chosen(capture: xr.Dataset, model: Model, task: EncodedTask, name: str) -> tuple[Head, str]:
    """Return the head of a name, or the one that the task needs and that looks at some token.

    Without a name it is the head, behind the first layer, with the largest product of its mean gate
    gradient and its mean weight on the key of the pair. The sentence says how it was chosen.
    """
    if name:
        found = re.fullmatch(r"L(\d+)H(\d+)", name)
        if found is None:
            raise InvalidInput(f"head: {name!r} is no head; give one such as L5H1, or none")
        head = (int(found[1]), int(found[2]))
        check_heads("head", [head], model.geometry)
        return head, "chosen by name"
    slopes = np.abs(gate_gradient(model, task, differentiable(task.metric)).mean(0))
    queries, layers = asked(task), np.flatnonzero(attending(capture))
    if len(layers) < 2:
        raise NotApplicable(
            f"model: {model.name} has one layer with an attention map, so no head reads another; "
            "name a head"
        )
    mean = np.full(slopes.shape, np.nan)
    for layer in layers[1:]:
        rows = [weights_at(capture, prompt, layer, at) for prompt, at in enumerate(queries)]
        mean[layer] = np.mean([[attended(row)[1] for row in each] for each in rows], axis=0)
    [head] = top(slopes * mean, 1)
    return head, "largest |gate gradient| × weight on its key"
