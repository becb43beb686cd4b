"""A task's metric, prompt by prompt: of the clean model, and with sets of heads ablated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from headscope import probes
from headscope.analyses._interventions import effects, head_sets
from headscope.analyses._interventions.batched_edits import ablate_rows
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.analyses._interventions.prefix_reuse import PrefixReuse
from headscope.probes.attention.forward import logits
from headscope.probes.prompts.prompt_batch import batches
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedTask

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

Array = NDArray[np.float64]
# Turns logits, the prompts of their rows and the positions they are of into one number a row.
Measure = Callable[[Tensor, Sequence[int], Sequence[Sequence[int]]], Tensor]
Batch = tuple[list[int], Int[Tensor, "row position"], Int[Tensor, "row question"]]

# Tokens in one forward pass: in a sweep more than SWEEP_TOKENS gain little time on a processor
# (benchmarks/ablation.py) and take memory. Numbers in the logits of a pass, and numbers kept of the
# residual stream.
TOKENS, SWEEP_TOKENS, NUMBERS, KEPT = 8192, 2048, 2**26, 2**27


def encode_task(model: Model, task: Task | EncodedTask) -> EncodedTask:
    """Return a task in the tokens of a model; one that is encoded already stays as it is."""
    if not isinstance(task, Task):
        model.check_predicts()
        return task
    # What cannot be read at all is the nearer reason.
    encoded = read(model, task).encoded
    model.check_predicts()
    assert encoded is not None
    return encoded


def evaluate(
    model: Model, task: Task | EncodedTask, edits: Sequence[Edit] = (), metric: str | None = None
) -> Array:
    """Measure how well a model does a task, with its heads edited (prompt,).

    Logits are computed at the question positions alone, of as many prompts at a time as the
    vocabulary allows. ``edits`` are applied in order; ``metric`` is one of `metrics.UNITS`, the
    task's own without it.
    """
    encoded = encode_task(model, task)
    answers = AnswerMetric(metric or encoded.metric, encoded.questions)
    result = np.full(len(encoded.ids), np.nan)
    with torch.no_grad():
        for prompts, ids, positions in question_batches(
            model, encoded.ids, encoded.question_positions, TOKENS
        ):
            output = logits(model, ids, edits, positions)
            result[prompts] = answers(output, prompts, positions.tolist()).cpu().numpy()
    return result


def ablate_each_head(
    model: Model,
    task: Task | EncodedTask,
    metric: str,
    values: Float[Tensor, ...] | None = None,
    *,
    first: int = 0,
    heads: Bool[Tensor, "layer head"] | None = None,
) -> Array:
    """Return the metric of every prompt with one head ablated at a time (prompt, layer, head).

    NaN in layers without an attention map, and where ``heads`` leaves a head out. The other
    parameters are those of :func:`ablate_sets`.
    """
    encoded = encode_task(model, task)
    answers = AnswerMetric(metric, encoded.questions)
    return np.asarray(ablate_heads(model, encoded, [answers], values, first=first, heads=heads)[0])


def ablate_heads(
    model: Model,
    task: EncodedTask,
    measures: Sequence[Measure],
    values: Float[Tensor, ...] | None = None,
    *,
    first: int = 0,
    heads: Bool[Tensor, "layer head"] | None = None,
    grouped: bool = False,
) -> Array:
    """Return all measures with one head ablated at a time (measure, prompt, layer, head).

    With ``grouped``, all query heads of a KV head at a time (measure, prompt, layer, kv_head).
    """
    sets = head_sets.every_group(model) if grouped else head_sets.every_head(model)
    kept = torch.ones(len(sets), dtype=torch.bool)
    if heads is not None:
        kept = (sets & heads).flatten(1).any(1)
    result = np.full((len(measures), len(task), len(sets)), np.nan)
    result[..., kept.numpy()] = ablate_sets(model, task, measures, sets[kept], values, first=first)
    return head_sets.fill_layers(model, result)


def ablated_metric(
    model: Model,
    task: Task | EncodedTask,
    metric: str,
    sets: Sequence[Sequence[Head]],
    values: Float[Tensor, "layer head size"] | None = None,
) -> Array:
    """Return the metric of every prompt with each set of heads ablated (prompt, set)."""
    encoded = encode_task(model, task)
    answers = AnswerMetric(metric, encoded.questions)
    return np.asarray(
        ablate_sets(model, encoded, [answers], head_sets.masks(model, sets), values)[0]
    )


def ablate_sets(
    model: Model,
    task: EncodedTask,
    measures: Sequence[Measure],
    sets: Bool[Tensor, "set layer head"],
    values: Float[Tensor, ...] | None = None,
    *,
    first: int = 0,
) -> Array:
    """Ablate each set of heads in turn and return all measures (measure, prompt, set).

    Parameters
    ----------
    measures
        Called with logits at the question positions, the prompts of the rows, and these positions.
    values
        What is put in place of a head's output: one vector a head (layer, head, size), or the
        outputs on other prompts (prompt, layer, head, query, size); zero without them.
    first
        First position that is edited; zero and vectors only.
    """
    by_prompt = values is not None and values.ndim > 3

    def measure(
        measuring: Model, prompts: list[int], masks: Bool[Tensor, "set layer head"]
    ) -> Array:
        stand_ins = values[prompts] if by_prompt else values  # type: ignore[index]

        def edit(rows: Bool[Tensor, "batch layer head"], batch: list[int]) -> Edit:
            return ablate_rows(rows, stand_ins[batch] if by_prompt else stand_ins, first)  # type: ignore[index]

        part = [
            replace(score, questions=[score.questions[prompt] for prompt in prompts])
            if isinstance(score, AnswerMetric)
            else score
            for score in measures
        ]
        return edit_sets(measuring, task.part(prompts), part, masks, edit)

    return effects.shared(model, task, measures, sets, values, first, measure)


def edit_sets(
    model: Model,
    task: EncodedTask,
    measures: Sequence[Measure],
    sets: Bool[Tensor, "set layer head"],
    edit: Callable[[Bool[Tensor, "batch layer head"], list[int]], Edit],
) -> Array:
    """Edit each set of heads in turn and return all measures (measure, prompt, set).

    ``edit`` is given the heads of every row of a batch, and the prompts that the rows are of, over
    and over.
    """

    def of_rows(numbers: Int[Tensor, " set"], prompts: list[int]) -> Edit:
        return edit(sets[numbers].repeat_interleave(len(prompts), dim=0), prompts)

    return sweep(
        model, task.ids, task.question_positions, measures, head_sets.first_layers(sets), of_rows
    )


def sweep(
    model: Model,
    ids: Sequence[Sequence[int]],
    question_positions: Sequence[Sequence[int]],
    measures: Sequence[Measure],
    starts: Int[Tensor, " variant"],
    edit: Callable[[Int[Tensor, " variant"], list[int]], Edit],
    most: int | None = None,
) -> Array:
    """Run all prompts under every variant of an edit, many in one pass (measure, prompt, variant).

    Parameters
    ----------
    ids, question_positions
        Token ids of every prompt, and the positions whose logits the measures see.
    measures
        As in :func:`ablate_sets`.
    starts
        First layer that each variant changes; what comes before it is run once. A variant that
        changes none starts behind the last.
    edit
        Makes the edit of some variants on some prompts; its rows are the prompts over and over,
        variant by variant.
    most
        Variants that one edit can make at once; as many as fit without it.
    """
    result = np.full((len(measures), len(ids), len(starts)), np.nan)
    tokens = SWEEP_TOKENS if model.device.type == "cpu" else TOKENS
    width = int(model.module.config.get_text_config().hidden_size)
    room = max(1, min(SWEEP_TOKENS, KEPT // ((model.layers + 1) * width)))
    with torch.no_grad():
        for prompts, batch, positions in question_batches(model, ids, question_positions, room):
            prefix = PrefixReuse(model, batch, positions)
            numbers = NUMBERS // (positions.numel() * model.vocabulary)
            together = most or max(1, min(tokens // batch.numel(), numbers))
            for layer in sorted(set(starts.tolist())):
                for variants in (starts == layer).nonzero().flatten().split(together):
                    times = len(variants)
                    output = prefix.logits(layer, (edit(variants, prompts),), times)
                    for number, measure in enumerate(measures):
                        scores = measure(output, prompts * times, positions.tolist() * times)
                        values = scores.cpu().numpy().reshape(times, -1).T
                        result[number][np.ix_(prompts, variants.numpy())] = values
    return result


def question_batches(
    model: Model,
    ids: Sequence[Sequence[int]],
    question_positions: Sequence[Sequence[int]],
    tokens: int,
) -> Iterator[Batch]:
    """Yield prompts of one length, their ids and question positions, such that their logits fit.

    A prompt with fewer positions than others names its last one again.
    """
    for prompts in batches(ids, tokens):
        width = max(len(question_positions[prompt]) for prompt in prompts)
        room = max(1, NUMBERS // (width * model.vocabulary))
        for start in range(0, len(prompts), room):
            chosen = prompts[start : start + room]
            rows = [
                [
                    *question_positions[at],
                    *[question_positions[at][-1]] * (width - len(question_positions[at])),
                ]
                for at in chosen
            ]
            yield chosen, torch.tensor([ids[prompt] for prompt in chosen]), torch.tensor(rows)


def mean_z(capture: xr.Dataset, first: int = 0) -> Float[Tensor, "layer head size"]:
    """Return each head's mean ``z`` over the positions, from ``first`` on, of all prompts."""
    z = capture["z"].isel(query=slice(first, None))
    return _tensor(z.mean(("prompt", "query"), skipna=True).transpose("layer", "head", ...))


def capture_corrupted(model: Model, task: Task | EncodedTask) -> xr.Dataset:
    """Capture ``z`` on the corrupted prompts of a task."""
    ids = encode_task(model, task).corrupted_ids
    return probes.capture(model, [list(prompt) for prompt in ids], stats=(), keep=("z",))


def kept_z(capture: xr.Dataset) -> Float[Tensor, "prompt layer head query size"]:
    """Return the kept ``z`` of a capture."""
    return _tensor(capture["z"].transpose("prompt", "layer", "head", "query", ...))


def _tensor(array: xr.DataArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.values, dtype=np.float32))
