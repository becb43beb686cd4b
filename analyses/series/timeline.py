"""Timeline: any analysis over a series of checkpoints, as one Dataset."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import xarray as xr

from headscope import analyses, probes
from headscope.analyses._runtime import options as option_values
from headscope.analyses._runtime import runner
from headscope.analyses._runtime.inputs import DEFAULT_PROMPTS
from headscope.analyses.series import joined, timeline_folder
from headscope.analyses.series.state import State, states
from headscope.kernels.errors import HeadscopeError, InvalidInput

Progress = Callable[[str, float, float], None]


def timeline(
    analysis: str,
    sources: Any,
    prompts: Any = None,
    *,
    task: Any = None,
    options: Mapping[str, Any] | None = None,
    n: int | None = None,
    seed: int = 0,
    steps: Sequence[float] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Run an analysis on every checkpoint of a series, one after the other.

    Parameters
    ----------
    analysis
        Name of the analysis.
    sources
        ``"headscope/induction@*"`` or a folder of checkpoints for all of them; or a list of what
        `load_model` takes: ``"ORG/NAME@step1000"``, folders such as ``checkpoint-400``, models.
    prompts
        Texts or token ids, the same for all, for analyses without a task of their own.
    task
        Name of a task, or a task, in place of the analysis' own; its prompts, where the analysis
        has none.
    options, n, seed
        As in `headscope.analyses._runtime.runner.execute`.
    steps
        Training step of each checkpoint; read from the names where not given.
    out
        Folder for the results. Each is kept as soon as it is there, and used again when the same
        call is made later: after a kill, or with more checkpoints. A checkpoint whose files have
        changed is run again.
    overwrite
        Replace another timeline that the folder holds.
    progress
        Called with (step, done, total); ``"checkpoints"`` counts them.

    Returns
    -------
    The variables of the analysis with the dim ``checkpoint`` in front and the coordinates ``step``
    (training step) and ``revision``. Attributes that differ between checkpoints stand in
    ``by_checkpoint``, a checkpoint that could not be run in ``failed`` with the reason; its values
    are missing.

    Raises
    ------
    InvalidInput
        For an unknown analysis or option, fewer than two checkpoints, a checkpoint without a step,
        a folder that holds something else, or when no checkpoint has a result.

    Examples
    --------
    >>> two = ["headscope/induction@step0", "headscope/induction@step1000"]
    >>> timeline("sinks", two, [[0, *range(5, 40)]])["sink"].dims
    ('checkpoint', 'layer', 'head')
    """
    settings = option_values.parse(analysis, analyses.options(analysis), options or {})
    has_task = hasattr(analyses.load(analysis), "TASK")
    if not has_task and prompts is None and task is None:
        raise InvalidInput(f"prompts: {analysis} runs on your own prompts; give some, or a task")
    series = states(sources, steps)
    identity = {
        "analysis": analysis,
        "options": json.dumps(settings, sort_keys=True),
        "prompts": timeline_folder.digest((prompts, task if has_task or prompts is None else None)),
        "n": n,
        "seed": seed,
        "headscope": version("headscope"),
    }
    folder = None if out is None else timeline_folder.prepare(out, identity, overwrite=overwrite)

    def measured(state: State) -> xr.Dataset:
        model, supplied = probes.load_model(state.source), prompts
        if not has_task and prompts is None:
            named = isinstance(task, str | os.PathLike)
            count = n or DEFAULT_PROMPTS
            supplied = probes.tasks.make(task, model.tokenizer, count, seed) if named else task
        return runner.execute(
            analysis, model, supplied, task=task if has_task else None, options=settings, n=n,
            seed=seed, progress=progress,
        )  # fmt: skip

    results: dict[str, xr.Dataset] = {}
    failed: dict[str, str] = {}
    for number, state in enumerate(series):
        if progress is not None:
            progress("checkpoints", number, len(series))
        try:
            result = None if folder is None else folder.find(state)
            if result is None:
                result = measured(state)
                if folder is not None:
                    folder.save(state, result)
            results[state.label] = result
        except Exception as error:
            # A broken checkpoint among many is named, and the others still say what they show.
            lines = str(error).strip().splitlines() or [""]
            kind = "" if isinstance(error, HeadscopeError) else f"{type(error).__name__}: "
            failed[state.label] = kind + lines[0]
    if progress is not None:
        progress("checkpoints", len(series), len(series))
    combined = joined.join(series, results, failed)
    if folder is not None:
        folder.finish(combined)
    return combined
