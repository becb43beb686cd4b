"""Documents moved over slots: prompts with the asked fact, or a dummy, in every slot."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headscope.kernels.errors import NotApplicable
from headscope.probes import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Prompt, Question, Task
from headscope.probes.prompts.tasks._vocabulary import Vocabulary
from headscope.probes.prompts.tokens import encode

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moved:
    """One prompt of facts, rewritten: the asked fact, and the dummy instead, in slot 0, 1, …

    A slot is the word positions of a key and its value.
    """

    asked: tuple[Prompt, ...]
    dummy: tuple[Prompt, ...]
    slots: tuple[tuple[int, int], ...]


def move(task: Task, model: Model) -> list[Moved]:
    """Rewrite every prompt of a task whose role ``value`` names stated values behind their keys.

    The first question is asked; the other facts keep their order around the moved one.
    """
    words = Vocabulary(model.tokenizer)
    spare = (words.take("keys"), words.take("values"))
    moved = [_moved(prompt, *spare) for prompt in task.prompts]
    if len({len(prompt.slots) for prompt in moved}) > 1:
        raise NotApplicable("task: prompts state different numbers of facts; give each as many")
    return moved


def _moved(prompt: Prompt, keys: tuple[str, ...], values: tuple[str, ...]) -> Moved:
    positions = sorted(prompt.roles.get("value", ()))
    question = min(prompt.questions, key=lambda candidate: candidate.at)
    if len(positions) < 3 or not question.evidence or question.evidence[0] not in positions:
        raise NotApplicable(
            "task: position_bias needs prompts with three stated facts or more, the role 'value' "
            "at their values and one of them as evidence, such as the task recall"
        )
    others = [(prompt.words[place - 1], prompt.words[place]) for place in positions]
    asked = others.pop(positions.index(question.evidence[0]))
    free = [[word for word in kind if word not in prompt.words] for kind in (keys, values)]
    if not all(free):
        raise NotApplicable("task: every known key or value is in the prompt; state fewer facts")

    def write(slot: int, fact: tuple[str, str]) -> Prompt:
        words = list(prompt.words[: question.at + 1])
        facts = [*others[:slot], fact, *others[slot:]]
        for place, pair in zip(positions, facts, strict=True):
            words[place - 1 : place + 1] = pair
        answered = Question(question.at, (asked[1],), (), (positions[slot],))
        return Prompt(tuple(words), tuple(words), (answered,))

    count = range(len(positions))
    dummy = (free[0][0], free[1][0])
    return Moved(
        tuple(write(slot, asked) for slot in count),
        tuple(write(slot, dummy) for slot in count),
        tuple((place - 1, place) for place in positions),
    )


def masses(model: Model, moved: Moved) -> tuple[Array, Array, dict[str, object]]:
    """Return the last query's mass on each slot, with the asked fact and with the dummy.

    Dims: slot of the moved document, layer, head, slot that is attended to; then the attributes of
    the capture.
    """
    both = Task("slots", (*moved.asked, *moved.dummy), "accuracy", 0, "A document in every slot.")
    offset = int(encode(both, model.tokenizer).offset)
    spans = {
        f"slot {number}": [[place + offset for place in slot]] * len(both)
        for number, slot in enumerate(moved.slots, 1)
    }
    captured = capture(model, both, stats=("span_mass",), spans=spans)
    last = captured["span_mass"].isel(query=-1).transpose("prompt", "layer", "head", "span")
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


def explained(asked: Array, dummy: Array) -> tuple[Array, Array, Array]:
    """Split the variance of masses over document and slot: by slot, by document, by both.

    The last axis is the slot; shares of the total, NaN where nothing varies.
    """
    table = np.stack((asked, dummy), axis=-2)
    whole = table.mean((-1, -2), keepdims=True)
    slot = table.mean(-2, keepdims=True) - whole
    document = table.mean(-1, keepdims=True) - whole
    rest = table - whole - slot - document
    total = ((table - whole) ** 2).sum((-1, -2))
    sums = [
        np.broadcast_to(effect**2, table.shape).sum((-1, -2)) for effect in (slot, document, rest)
    ]
    known = np.where(total > 1e-12, total, np.nan)
    return sums[0] / known, sums[1] / known, sums[2] / known
