"""The cells of a job and what they need, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope import probes
from headscope.app.batch.job import Group, Job
from headscope.app.batch.shards import subset
from headscope.app.batch.worker import Failure, capture_options, group_slices, load
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.probes.capturing.memory_estimate import Plan


@dataclass(frozen=True)
class Need:
    """What a group needs, or the reason why it cannot run.

    Its prompts, their tokens, the parts that are captured, and the plan of the largest of them;
    None where no analysis needs a capture.
    """

    group: Group
    prompts: int = 0
    tokens: int = 0
    parts: int = 0
    plan: Plan | None = None
    reason: str = ""


def needs(job: Job) -> Iterator[Need]:
    """Estimate what every group needs; its models are loaded, nothing is run or written."""
    from headscope.probes.prompts.reading import read

    for group in job.groups:
        try:
            model = load(group.model, job.threads)
            prompts = group.task.draw(model, group.seed)
            lengths = [len(ids) for ids in read(model, prompts).ids]
            options = capture_options(job, group, model, prompts)
            parts = group_slices(job, group)
            plan = None
            if options is not None:
                # Its tokens decide what a part needs.
                largest = max(parts, key=lambda part: sum(lengths[part.start : part.stop]))
                plan = probes.plan(
                    model, subset(prompts, largest), batch_tokens=job.batch_tokens, **options
                )
            yield Need(group, len(lengths), sum(lengths), len(parts), plan)
        except HeadscopeError as error:
            yield Need(group, reason=Failure.of(error, group.model).reason)


def lines(job: Job) -> Iterator[str]:
    """Lay what a job needs out as lines: a group each, then the sum."""
    from headscope.probes.capturing.memory_estimate import format_bytes

    cells = captures = tokens = memory = weights = device = 0
    for need in needs(job):
        group = need.group
        cells += len(group.analyses)
        head = f"{group.title}: {len(group.analyses)} cells"
        if need.reason:
            yield f"{head}; cannot run: {need.reason}"
            continue
        text = "no capture"
        if need.plan is not None:
            captures += need.parts
            tokens += need.tokens
            memory, weights = max(memory, need.plan.memory), max(weights, need.plan.weights)
            device = max(device, need.plan.device_memory)
            peak = format_bytes(need.plan.memory)
            text = f"{need.parts} captures, {peak} beyond the model at the peak"
            if not need.plan.fits():
                text += f", MORE THAN THE {format_bytes(need.plan.available)} AVAILABLE"
        yield f"{head}, {need.prompts} prompts, {need.tokens} tokens, {text}"
        yield f"    {', '.join(group.analyses)}"
    yield f"{cells} cells; {captures} captures of {tokens} tokens together"
    more = f"; on the device {format_bytes(device)}" if device else ""
    yield (
        f"memory: {format_bytes(weights)} for the largest model and "
        f"{format_bytes(memory)} for the largest capture{more}; "
        "what analyses run beside it is not counted"
    )
