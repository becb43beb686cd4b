"""Work: what is done for a cell, the same in this process and in a worker of a cluster."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import xarray as xr

from headscope.app.batch.job import Group, Job, Subject
from headscope.app.batch.shards import cut, merge, parts
from headscope.app.pipeline import is_bug, reason

if TYPE_CHECKING:
    from headscope.analyses._runtime.requirements import Needs
    from headscope.probes.models.model import Model

Progress = Callable[[str, int, int], None]
TILES, TILE = 64, 16


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result: one line, and where it happened."""

    reason: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException, subject: Subject | None = None) -> Failure:
        """Read an exception; a model is called by its label."""
        words = reason(error)
        if subject is not None:
            words = words.replace(subject.source, subject.label)
        trace = "".join(traceback.format_exception(error)) if is_bug(error) else ""
        return cls(words, trace)


Outcome = xr.Dataset | Failure


def opened(subject: Subject, threads: int) -> Model:
    """Load a model; the last one stays loaded, or the reason why it does not load."""
    found = _load(subject, threads)
    if isinstance(found, Exception):
        raise found
    return found


@lru_cache(maxsize=1)
def _load(subject: Subject, threads: int) -> Model | Exception:
    import torch

    torch.set_num_threads(threads)
    try:
        return subject.load()
    except Exception as error:
        return error


def needs(job: Job, group: Group, model: Model) -> Needs:
    """Join what the analyses of a group ask of their capture, where the attention has it."""
    from headscope import analyses
    from headscope.analyses._runtime.inputs import positionals
    from headscope.analyses._runtime.requirements import Needs
    from headscope.probes.capturing.options import applicable_stats

    joined = Needs()
    for name in group.analyses:
        if "capture" in positionals(name):
            joined |= Needs.of(analyses.load(name))
    return Needs(
        applicable_stats(joined.stats, model), *(joined.keep, joined.offsets, joined.targets)
    )


def captured(
    job: Job, group: Group, part: slice, progress: Progress | None = None
) -> xr.Dataset | Failure | None:
    """Capture a part of the prompts of a group, for all of its analyses; None where none asks."""
    from headscope.probes import capture

    try:
        model = opened(group.subject, job.threads)
        given = group.questions.draw(model, group.seed)
        arguments = capturing(job, group, model, given)
        if arguments is None:
            return None
        if progress is not None:
            arguments["progress"] = lambda done, total: progress("capture", done, total)
        return capture(model, cut(given, part), batch_tokens=job.batch_tokens, **arguments)
    except Exception as error:
        return Failure.of(error, group.subject)


def capturing(job: Job, group: Group, model: Model, given: Any) -> dict[str, Any] | None:
    """Give the options of a group's capture, the same for each part; None where none is needed."""
    from headscope.probes.prompts.reading import read

    wanted = needs(job, group, model)
    if not wanted.stats and not wanted.keep:
        return None
    arguments: dict[str, Any] = {"stats": wanted.stats, "keep": wanted.keep}
    if wanted.offsets:
        arguments["offsets"] = wanted.offsets
    if wanted.targets:
        arguments["targets"] = wanted.targets
    if job.shard:
        # As a capture of all prompts would choose, for the longest of them.
        tile = TILE
        while max(read(model, given).longest) > TILES * tile:
            tile *= 2
        arguments["tile"] = tile
    return arguments


def joined(
    job: Job, group: Group, captures: Sequence[xr.Dataset | Failure | None]
) -> xr.Dataset | Failure | None:
    """Put the captures of the parts of a group together, or say what failed first."""
    from headscope.probes.prompts.reading import read

    there = [one for one in captures if isinstance(one, xr.Dataset)]
    if len(there) < len(captures):
        return next((one for one in captures if isinstance(one, Failure)), None)
    try:
        model = opened(group.subject, job.threads)
        return merge(there, read(model, group.questions.draw(model, group.seed)))
    except Exception as error:
        return Failure.of(error, group.subject)


def analysed(
    job: Job,
    group: Group,
    analysis: str,
    held: xr.Dataset | Failure | None,
    progress: Progress | None = None,
) -> Outcome:
    """Run one analysis of a group on its capture."""
    from headscope.analyses._runtime.inputs import positionals
    from headscope.analyses._runtime.runner import execute

    try:
        model = opened(group.subject, job.threads)
        if isinstance(held, Failure):
            if "capture" in positionals(analysis):
                return held
            held = None
        given = group.questions.draw(model, group.seed)
        return execute(
            analysis, model, given, capture=held, task=given,
            options=job.options.get(analysis, {}), seed=group.seed, progress=progress,
        )  # fmt: skip
    except Exception as error:
        return Failure.of(error, group.subject)


def slices(job: Job, group: Group) -> list[slice]:
    """List the parts that the prompts of a group are captured in."""
    return parts(len(group.questions), job.shard)
