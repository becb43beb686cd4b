"""The analyses for one run: what each asks, its evidence and cost, and whether it applies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from headscope import analyses
from headscope.analyses._runtime.evidence import table
from headscope.app.dashboard import cache
from headscope.app.dashboard.jobs import Job, Report
from headscope.app.dashboard.visitor import visitor
from headscope.app.report.scores import collect
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.analyses._runtime.cost import Cost

# What was estimated here, by run, analysis, options and prompts; the same for all sessions.
_COSTS: dict[Any, Cost] = {}
MOST = 4096
ESTIMATING = "drawing prompts and timing passes"


@st.cache_data(max_entries=32, show_spinner="Reading the catalogue …")
def refusals(key: cache.RunKey) -> dict[str, str]:
    """Return why analyses do not suit the model of a run, by name; those that do are left out."""
    from headscope.analyses._runtime.applicability import refusal

    capture = cache.run(key)[1]
    reasons = {name: refusal(name, capture) for name in analyses.names()}
    return {name: why for name, why in reasons.items() if why}


def rows(key: cache.RunKey, names: Sequence[str]) -> list[dict[str, str]]:
    """Describe analyses as rows of a table."""
    families = {name: family for family, all_of in analyses.families().items() for name in all_of}
    suited = refusals(key)
    return [
        {
            "analysis": name,
            "status": "does not apply" if name in suited else status(key, name),
            "cost here": "" if name in suited else cost_text(known_cost(key, name)),
            "evidence": ", ".join(table()[name]),
            "what it measures": analyses.summary(name),
            "question": families[name].replace("_", " "),
        }
        for name in names
    ]


def status(key: cache.RunKey, name: str) -> str:
    """Return whether a run has a result of an analysis."""
    result = cache.run(key)[2].get(name)
    if result is None:
        return ""
    return "refused" if "skipped" in result.attrs else "done"


def cost_text(cost: Cost | None) -> str:
    """Format a cost in a few words."""
    from headscope.analyses._runtime.cost import duration

    if cost is None:
        return ""
    if cost.passes is None or cost.seconds is None:
        return "not counted"
    if not cost.passes:
        return "reads the capture"
    return f"{cost.passes:.3g} passes × {cost.tokens:,} tokens, about {duration(cost.seconds)}"


def known_cost(
    key: cache.RunKey, name: str, options: Mapping[str, Any] | None = None, n: int | None = None
) -> Cost | None:
    """Return what was estimated for an analysis on a run; None where nothing was."""
    return _COSTS.get(_cost_key(key.path, name, options or {}, n))


def _cost_key(path: str, name: str, options: Mapping[str, Any], n: int | None) -> Any:
    created = Path(path, cache.MANIFEST).stat().st_mtime_ns
    return path, created, name, json.dumps(options, sort_keys=True), n


def _keep(
    path: str, costs: Sequence[Cost], options: Mapping[str, Mapping[str, Any]], n: int | None
) -> None:
    if len(_COSTS) > MOST:
        _COSTS.clear()
    for cost in costs:
        _COSTS[_cost_key(path, cost.analysis, options.get(cost.analysis, {}), n)] = cost


def estimating(
    key: cache.RunKey, names: Sequence[str], options: Mapping[str, Any], n: int | None
) -> Job:
    """Return the job that estimates the cost of analyses on a run."""
    by_analysis = {names[0]: dict(options)} if options else {}

    def do(report: Report) -> None:
        from headscope.analyses._runtime import cost
        from headscope.app.pipeline import open_model
        from headscope.probes.prompts import tasks
        from headscope.probes.storage import run_folder

        run = run_folder.open(key.path)
        model = open_model(run, load=cache.job_loader(report))
        prompts, register = run.prompts(), run.manifest["options"].get("register")
        for number, name in enumerate(names):
            report(ESTIMATING, number, len(names))
            with tasks.wording(register):
                costs = cost.estimate(
                    [name], model, prompts, n=n, options=by_analysis, own_task=run.own_task()
                )
            _keep(key.path, costs, by_analysis, n)

    subject = names[0] if len(names) == 1 else f"{len(names)} analyses"
    about = (key.path, tuple(names), json.dumps(by_analysis, sort_keys=True), n)
    return Job(
        "costs", f"Cost of {subject} on {Path(key.path).name}", visitor(), do,
        message="it is in the catalogue", about=about,
    )  # fmt: skip


def analyzing(
    key: cache.RunKey, names: Sequence[str], options: Mapping[str, Any], n: int | None
) -> Job:
    """Return the job that runs analyses on a run; each result is stored at once."""
    by_analysis = {names[0]: dict(options)} if options else {}
    subject = names[0] if len(names) == 1 else f"{len(names)} analyses"
    job: Job

    def do(report: Report) -> None:
        from headscope.app.outcomes import finished
        from headscope.app.pipeline import analyze_run
        from headscope.probes.storage import run_folder

        def load(*source: Any, **loading: Any) -> Any:
            model = cache.job_loader(report)(*source, **loading)
            report(ESTIMATING, 0, 1)
            return model

        def announce(costs: Sequence[Cost]) -> None:
            report(ESTIMATING, 1, 1)
            _keep(key.path, costs, by_analysis, n)

        run = run_folder.open(key.path)
        outcomes = analyze_run(
            run, names, number=n, options=by_analysis, load=load, announce=announce, progress=report
        )
        refused = {
            name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Exception)
        }
        if len(names) == len(refused) == 1:
            raise refused[names[0]]
        count = len(set(names) & set(finished(run)))
        without = f"; none: {', '.join(refused)}" if refused else ""
        job.message = f"{count} with a result{without}"
        scores = list(collect({name: run.results()[name] for name in names if name not in refused}))
        if scores:
            job.opens = ("heads", {"run": run.name, "by": scores[0]}, "See the heads")

    job = Job(
        "analyses", f"{subject} on {Path(key.path).name}", visitor(), do,
        remains="What was finished is kept, measured effects too: the next run goes on there.",
        about=(key.path, tuple(names), json.dumps(by_analysis, sort_keys=True), n),
    )  # fmt: skip
    return job


def check(name: str, options: Mapping[str, Any]) -> str:
    """Describe what is wrong with options; "" where nothing is."""
    from headscope.analyses._runtime.options import parse

    try:
        parse(name, analyses.options(name), options)
    except HeadscopeError as refusal:
        return str(refusal)
    return ""
