"""What is done for a cell, the same in this process and in a worker of a cluster.

Importing it imports neither torch nor transformers: a worker of Ray has the root of the repository
on its path until `ray_engine` takes it off.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import xarray as xr

from headscope import analyses, probes
from headscope.analyses._runtime.inputs import positionals
from headscope.analyses._runtime.requirements import Needs
from headscope.analyses._runtime.runner import execute
from headscope.app.batch.job import Group, Job
from headscope.app.batch.schema import ModelSpec
from headscope.app.batch.shards import merge, slices, subset
from headscope.app.outcomes import is_bug, reason
from headscope.app.pipeline import Progress
from headscope.probes.prompts import tasks

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result: one line, and the traceback of a bug."""

    reason: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException, model: ModelSpec | None = None) -> Failure:
        """Read an exception; a model is called by its name."""
        text = reason(error)
        if model is not None:
            text = text.replace(model.model, model.name)
        trace = "".join(traceback.format_exception(error)) if is_bug(error) else ""
        return cls(text, trace)


Outcome = xr.Dataset | Failure


def load(spec: ModelSpec, threads: int) -> Model:
    """Load a model; the last one stays loaded, or the reason why it does not load."""
    model = _load(spec, threads)
    if isinstance(model, Exception):
        raise model
    return model


@lru_cache(maxsize=1)
def _load(spec: ModelSpec, threads: int) -> Model | Exception:
    """Load a model, or return why it does not load."""
    import torch

    torch.set_num_threads(threads)
    try:
        return spec.load()
    except Exception as error:
        return error


def capture_part(
    job: Job, group: Group, part: slice, progress: Progress | None = None
) -> Outcome | None:
    """Capture a part of the prompts of a group, for all of its analyses; None where none asks."""
    try:
        model = load(group.model, job.threads)
        prompts = group.task.draw(model, group.seed)
        options = capture_options(job, group, model, prompts)
        if options is None:
            return None
        if progress is not None:
            options["progress"] = lambda done, total: progress("capture", done, total)
        part_of_prompts = subset(prompts, part)
        return probes.capture(model, part_of_prompts, batch_tokens=job.batch_tokens, **options)
    except Exception as error:
        return Failure.of(error, group.model)


def capture_options(job: Job, group: Group, model: Model, prompts: Any) -> dict[str, Any] | None:
    """Return the options of a group's capture, the same for each part; None where none is needed.

    They hold what its analyses ask of it, where the attention of the model has it.
    """
    from headscope.probes.capturing.options import applicable_stats, default_tile
    from headscope.probes.prompts.reading import read

    needs = Needs()
    for name in group.analyses:
        if "capture" in positionals(name):
            needs |= Needs.of(analyses.load(name))
    options: dict[str, Any] = {**needs.arguments(), "stats": applicable_stats(needs.stats, model)}
    if not options["stats"] and not options["keep"]:
        return None
    if job.shard:
        # As a capture of all prompts would choose, for the longest of them.
        options["tile"] = default_tile(max(read(model, prompts).longest))
    return options


def join_parts(job: Job, group: Group, parts: Sequence[Outcome | None]) -> Outcome | None:
    """Concatenate the captures of the parts of a group, or return the first failure."""
    from headscope.probes.prompts.reading import read

    captures = [part for part in parts if isinstance(part, xr.Dataset)]
    if len(captures) < len(parts):
        return next((part for part in parts if isinstance(part, Failure)), None)
    try:
        model = load(group.model, job.threads)
        return merge(captures, read(model, group.task.draw(model, group.seed)))
    except Exception as error:
        return Failure.of(error, group.model)


def analyze(
    job: Job, group: Group, analysis: str, capture: Outcome | None, progress: Progress | None = None
) -> Outcome:
    """Run one analysis of a group on its capture."""
    try:
        model = load(group.model, job.threads)
        if isinstance(capture, Failure):
            if "capture" in positionals(analysis):
                return capture
            capture = None
        prompts = group.task.draw(model, group.seed)
        with tasks.wording(group.task.wording):
            return execute(
                analysis, model, prompts, capture=capture, task=prompts,
                options=job.options.get(analysis, {}), seed=group.seed, progress=progress,
            )  # fmt: skip
    except Exception as error:
        return Failure.of(error, group.model)


def group_slices(job: Job, group: Group) -> list[slice]:
    """List the parts that the prompts of a group are captured in."""
    return slices(group.task.count, job.shard)
