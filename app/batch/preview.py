"""Preview: the cells of a job and what they need, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope.app.batch.job import Group, Job
from headscope.app.batch.worker import Failure, capturing, opened, slices
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.probes.capturing.memory_estimate import Plan


@dataclass(frozen=True)
class Need:
    """What a group needs, or why it cannot run.

    Attributes
    ----------
    group
        The group.
    prompts, tokens, parts
        Its prompts, their tokens, and the captures they are taken in.
    plan
        Of the largest part: bytes of the capture; None where no analysis needs one.
    reason
        Why none of its cells can run, or "".
    """

    group: Group
    prompts: int = 0
    tokens: int = 0
    parts: int = 0
    plan: Plan | None = None
    reason: str = ""


def needs(job: Job) -> Iterator[Need]:
    """Weigh every group of a job; its models are loaded, nothing is run or written."""
    from headscope.app.batch.shards import cut
    from headscope.probes import plan
    from headscope.probes.prompts.reading import read

    for group in job.groups:
        try:
            model = opened(group.subject, job.threads)
            given = group.questions.draw(model, group.seed)
            lengths = [len(one) for one in read(model, given).ids]
            arguments = capturing(job, group, model, given)
            cuts = slices(job, group)
            # Its tokens decide what a part needs.
            _, widest = max((sum(lengths[one]), -at) for at, one in enumerate(cuts))
            planned = None
            if arguments is not None:
                part = cut(given, cuts[-widest])
                planned = plan(model, part, batch_tokens=job.batch_tokens, **arguments)
            yield Need(group, len(lengths), sum(lengths), len(cuts), planned)
        except HeadscopeError as refusal:
            yield Need(group, reason=Failure.of(refusal, group.subject).reason)


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
        captures += need.parts if need.plan else 0
        tokens += need.tokens if need.plan else 0
        said = "no capture"
        if need.plan is not None:
            peak = need.plan.memory
            memory, weights = max(memory, peak), max(weights, need.plan.weights)
            device = max(device, need.plan.device_memory)
            said = f"{need.parts} captures, {format_bytes(peak)} beyond the model at the peak"
            if not need.plan.fits():
                said += f", MORE THAN THE {format_bytes(need.plan.available)} AVAILABLE"
        yield f"{head}, {need.prompts} prompts, {need.tokens} tokens, {said}"
        yield f"    {', '.join(group.analyses)}"
    yield f"{cells} cells; {captures} captures of {tokens} tokens together"
    more = f"; on the device {format_bytes(device)}" if device else ""
    yield (
        f"memory: {format_bytes(weights)} for the largest model and "
        f"{format_bytes(memory)} for the largest capture{more}; "
        "what analyses run beside it is not counted"
    )
