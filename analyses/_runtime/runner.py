"""The runner: supplies analyses with what their signatures name, and records provenance.

Analyses that run on the same prompts share one capture with the union of what they need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from headscope import analyses
from headscope.analyses._interventions import dtype_agreement
from headscope.analyses._interventions.effects import EffectsTable, sharing
from headscope.analyses._runtime import options as check
from headscope.analyses._runtime.inputs import Progress, PromptSets, positionals
from headscope.analyses._runtime.progress import reporting
from headscope.kernels.errors import HeadscopeError, InvalidInput, ResourceLimit

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task


def execute(
    name: str,
    model: Model,
    prompts: Any = None,
    *,
    capture: xr.Dataset | None = None,
    task: Any = None,
    options: Mapping[str, Any] | None = None,
    n: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    sae: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Run one analysis, supplying everything that its signature names.

    Parameters
    ----------
    name
        Name of the analysis.
    model
        Model to analyze.
    prompts
        Texts, token ids or a task: the prompts of analyses that declare no task of their own.
    capture
        Capture of ``prompts``; used where it holds what the analysis needs.
    task
        Name of a task, path of a JSONL file, a task, or (where the analysis needs no answers) any
        prompts, instead of the analysis' own task.
    options
        Values of the analysis' options; text is converted to the type of the default.
    n
        Number of prompts made from the analysis' task; default: what the analysis declares.
    seed
        Seed of the task and, unless ``options`` says otherwise, of the analysis.
    dtype
        ``bfloat16`` measures sweeps of ablations with the model's products in that format; the note
        says how far a sample agrees with float32.
    sae
        Sparse autoencoder for the analyses that take one; without it they train one.
    progress
        Called with (name of the analysis, done, total), in tokens times layers; a total of 0 is
        not known.

    Returns
    -------
    The result of the analysis; its attributes carry the provenance of the capture and
    ``analysis``, ``title`` and ``options`` (JSON).

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("sinks", model, [[0, 5, 6, 7, 8, 9, 10, 11]], options={"epsilon": "0.8"})
    >>> result.attrs["analysis"], result.attrs["title"].split(":")[0]
    ('sinks', 'Attention sinks')
    """
    results = execute_many(
        (name,),
        model,
        prompts,
        capture=capture,
        task=task,
        options={name: options or {}},
        n=n,
        seed=seed,
        dtype=dtype,
        sae=sae,
        progress=progress,
    )
    result = next(results)[1]
    if isinstance(result, Exception):
        raise result
    return result


def execute_many(
    names: Iterable[str],
    model: Model,
    prompts: Any = None,
    *,
    capture: xr.Dataset | None = None,
    task: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    n: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    sae: Any = None,
    progress: Progress | None = None,
    effects: Path | None = None,
    own_task: Task | None = None,
) -> Iterator[tuple[str, xr.Dataset | Exception]]:
    """Run several analyses with one capture per prompt set; yield each result as it is ready.

    Names and options are checked before anything runs. The parameters are those of
    :func:`execute`, except that ``options`` is keyed by analysis. Effects of ablations are measured
    once for all of them; the folder ``effects`` keeps them for later. Analyses that can ask any
    task with answers ask ``own_task``, unless ``task`` names one.

    Yields
    ------
    The name of an analysis and its result, or why it has none, and the others still run:
    `NotApplicable` or `UnsupportedModel` for a model or prompts that do not suit it, any other
    exception for a bug in it.

    Raises
    ------
    InvalidInput, ResourceLimit
        What the user has to mend before any analysis can go on.
    """
    analysis_names = tuple(dict.fromkeys(names))
    options_by_name = options or {}
    stray = [name for name in options_by_name if name not in analysis_names]
    if stray:
        raise InvalidInput(f"options: {stray[0]!r} is not among the analyses to run")
    settings = {
        name: _settings(name, options_by_name.get(name, {}), seed) for name in analysis_names
    }
    sets = PromptSets(model, prompts, capture, task, n, seed, sae, own_task)
    for name in analysis_names:
        sets.expect(name)
    return _run(analysis_names, settings, sets, EffectsTable(effects, dtype), progress)


def _run(
    analysis_names: tuple[str, ...],
    settings: dict[str, dict[str, Any]],
    sets: PromptSets,
    table: EffectsTable,
    progress: Progress | None,
) -> Iterator[tuple[str, xr.Dataset | Exception]]:
    from headscope.analyses._runtime import expected_work, pass_costs
    from headscope.probes.prompts import tasks

    for name in analysis_names:
        module = analyses.load(name)
        report = None if progress is None else partial(progress, name)
        try:
            sets.check(name)
            expected = None
            if report is not None:
                with suppress(HeadscopeError):  # the analysis itself says why
                    expected = expected_work.expect(name, sets, settings[name])
            total = None if expected is None else expected.total(pass_costs.known(sets.model))
            table.used.clear()
            with reporting(report, total), sharing(table):
                supplied = [sets.supply(name, argument) for argument in positionals(name)]
                # What an analysis draws beside the task that it is given is worded like it.
                with tasks.wording(getattr(sets.drawn(name), "register", None) or None):
                    result = module.run(*supplied, **settings[name])
            used = dict.fromkeys(table.used)
            sets.state(name, result)
            dtype_agreement.state(result, [table.agreements[key] for key in used])
        except (InvalidInput, ResourceLimit):
            raise
        except Exception as error:
            yield name, error
            continue
        result.attrs = {
            **result.attrs,
            "analysis": name,
            "title": analyses.summary(name),
            "options": json.dumps(settings[name], sort_keys=True),
        }
        yield name, result


def _settings(name: str, overrides: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return every option of an analysis with its value."""
    declared = analyses.options(name)
    values = {option: declaration.default for option, declaration in declared.items()}
    if "seed" in values:
        values["seed"] = seed
    return {**values, **check.parse(name, declared, overrides)}
