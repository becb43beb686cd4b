"""Documents moved over slots: prompts with the asked fact, or a dummy, in every slot."""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable
from headscope.probes import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts import writing
from headscope.probes.prompts.task import Prompt, Task
from headscope.probes.prompts.tasks._absent_facts import with_stated_fact
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.tokens import encode


@dataclass(frozen=True)
class Moved:
    """One prompt of facts, rewritten: the asked fact, and the dummy instead, in slot 0, 1, …

    A slot is the tokens of a key and its value.
    """

    asked: tuple[Prompt, ...]
    dummy: tuple[Prompt, ...]

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.asked)


def move(task: Task, model: Model) -> list[Moved]:
    """Rewrite every prompt of a task whose roles ``key`` and ``value`` name stated facts.

    The first question is asked; the other facts keep their order around the moved one.
    """
    words = Vocabulary(model.tokenizer, register=task.register or None)
    spare = (words.take("keys"), words.take("values"))
    moved = [_moved(prompt, *spare) for prompt in with_stated_fact(task).prompts]
    if len({prompt.slots for prompt in moved}) > 1:
        raise NotApplicable("task: prompts state different numbers of facts; give each as many")
    return moved


def _moved(prompt: Prompt, keys: tuple[str, ...], values: tuple[str, ...]) -> Moved:
    spans = list(zip(prompt.roles.get("key", ()), prompt.roles.get("value", ()), strict=False))
    question = prompt.questions[0]
    stands = [value for _, value in spans]
    if len(spans) < 3 or not question.evidence or question.evidence[0] not in stands:
        raise NotApplicable(
            "task: position_bias needs prompts with three stated facts or more, the role 'value' "
            "at their values, 'key' at their keys and one value as evidence, such as the task "
            "recall with pairs=3"
        )
    other_facts = [(str(prompt.part(key)), str(prompt.part(value))) for key, value in spans]
    asked_fact = other_facts.pop(stands.index(question.evidence[0]))
    free = [[word for word in kind if word not in prompt.clean] for kind in (keys, values)]
    if not all(free):
        raise NotApplicable("task: every known key or value is in the prompt; state fewer facts")

    def write(slot: int, fact: tuple[str, str]) -> Prompt:
        facts = [*other_facts[:slot], fact, *other_facts[slot:]]
        moved = replace(prompt, questions=(replace(question, evidence=(stands[slot],)),))
        texts = {}
        for (key, value), fact_there in zip(spans, facts, strict=True):
            texts[key], texts[value] = fact_there
        return writing.replace(moved, texts)

    count = range(len(spans))
    dummy = (free[0][0], free[1][0])
    return Moved(
        tuple(write(slot, asked_fact) for slot in count),
        tuple(write(slot, dummy) for slot in count),
    )


def masses(model: Model, moved: Moved) -> tuple[Array, Array, dict[str, object]]:
    """Return the last query's mass on each slot, with the asked fact and with the dummy.

    Dims: slot of the moved document, layer, head, slot that is attended to; then the attributes of
    the capture.
    """
    both = Task("slots", (*moved.asked, *moved.dummy), "accuracy", 0, "A document in every slot.")
    encoded = encode(both, model.tokenizer, model.bos)
    spans = {
        f"slot {slot + 1}": [[*row["key"][slot], *row["value"][slot]] for row in encoded.spans]
        for slot in range(moved.slots)
    }
    captured = capture(model, both, stats=("span_mass",), spans=spans)
    asking = xr.DataArray([questions[0].at for questions in encoded.questions], dims="prompt")
    last = captured["span_mass"].isel(query=asking).transpose("prompt", "layer", "head", "span")
    values = last.values.astype(np.float64)
    return values[: len(moved.asked)], values[len(moved.asked) :], dict(captured.attrs)


def curve(bias: Array) -> tuple[Array, Array]:
    """Return the tilt and the curvature of values over slots: a + b x + c x², x from −1 to 1."""
    fit = _fit(bias.shape[-1])
    return bias @ fit[1], bias @ fit[2]


def wave(bias: Array) -> Array:
    """Return the root mean square of what a parabola over the slots leaves."""
    count = bias.shape[-1]
    fitted = (bias @ _fit(count).T) @ _powers(count).T
    return np.asarray(np.sqrt(((bias - fitted) ** 2).mean(-1)))


def _powers(count: int) -> Array:
    return np.vander(np.linspace(-1, 1, count), 3, increasing=True)


def _fit(count: int) -> Array:
    return np.asarray(np.linalg.pinv(_powers(count)))


def explained(facts: Array, dummies: Array) -> tuple[Array, Array, Array]:
    """Split the variance of masses over document and slot: by slot, by document, by both.

    The last axis is the slot; shares of the total, NaN where nothing varies.
    """
    table = np.stack((facts, dummies), axis=-2)
    grand_mean = table.mean((-1, -2), keepdims=True)
    slot = table.mean(-2, keepdims=True) - grand_mean
    document = table.mean(-1, keepdims=True) - grand_mean
    residual = table - grand_mean - slot - document
    total = ((table - grand_mean) ** 2).sum((-1, -2))
    sums = [
        np.broadcast_to(effect**2, table.shape).sum((-1, -2))
        for effect in (slot, document, residual)
    ]
    varying = np.where(total > 1e-12, total, np.nan)
    return sums[0] / varying, sums[1] / varying, sums[2] / varying
