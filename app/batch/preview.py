"""The cells of a job and what they need, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from headscope import probes
from headscope.analyses._runtime import cost
from headscope.app.batch.job import Group, Job
from headscope.app.batch.shards import subset
from headscope.app.batch.worker import Failure, capture_options, group_slices, load
from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts import tasks

if TYPE_CHECKING:
    from headscope.probes.capturing.memory_estimate import Plan


def lines(job: Job) -> Iterator[str]:
    """Yield the cost of a job as lines: one a group, then the sum; nothing is run or written."""
    from headscope.probes.capturing.memory_estimate import format_bytes

    cells = captures = tokens = memory = weights = device = 0
    seconds = 0.0
    for group in job.groups:
        cells += len(group.analyses)
        head = f"{group.title}: {len(group.analyses)} cells"
        try:
            lengths, parts, plan, costs = _estimate(job, group)
        except HeadscopeError as error:
            yield f"{head}; cannot run: {Failure.of(error, group.model).reason}"
            continue
        text = "no capture"
        if plan is not None:
            captures += parts
            tokens += sum(lengths)
            memory, weights = max(memory, plan.memory), max(weights, plan.weights)
            device = max(device, plan.device_memory)
            text = f"{parts} captures, {format_bytes(plan.memory)} beyond the model at the peak"
            if not plan.fits():
                text += f", MORE THAN THE {format_bytes(plan.available)} AVAILABLE"
        yield f"{head}, {len(lengths)} prompts, {sum(lengths)} tokens, {text}"
        yield from (f"    {estimate}" for estimate in costs)
        seconds += sum(estimate.seconds or 0 for estimate in costs)
    together = f"{captures} captures of {tokens} tokens together"
    yield f"{cells} cells, about {cost.duration(seconds)} of passes; {together}"
    more = f"; on the device {format_bytes(device)}" if device else ""
    yield (
        f"memory: {format_bytes(weights)} for the largest model and "
        f"{format_bytes(memory)} for the largest capture{more}"
    )


def _estimate(job: Job, group: Group) -> tuple[list[int], int, Plan | None, list[cost.Cost]]:
    """Return the tokens of each prompt, the captures, what the largest needs, and what cells cost.

    The plan is None where no analysis of the group needs a capture.
    """
    from headscope.probes.prompts.reading import read

    model = load(group.model, job.threads)
    prompts = group.task.draw(model, group.seed)
    lengths = [len(ids) for ids in read(model, prompts).ids]
    options = capture_options(job, group, model, prompts)
    parts = group_slices(job, group)
    with tasks.wording(group.task.wording):
        costs = cost.estimate(
            group.analyses, model, prompts, task=prompts, seed=group.seed, options=job.options
        )
    if options is None:
        return lengths, len(parts), None, costs
    # Its tokens decide what a part needs.
    largest = max(parts, key=lambda part: sum(lengths[part.start : part.stop]))
    plan = probes.plan(model, subset(prompts, largest), batch_tokens=job.batch_tokens, **options)
    return lengths, len(parts), plan, costs
