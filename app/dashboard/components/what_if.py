"""What changes, in a text or on a task, when some heads are edited."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._interventions.next_token_loss import predicts
from headscope.analyses._runtime.progress import reporting
from headscope.analyses._runtime.results import heads, label
from headscope.app.dashboard import cache
from headscope.app.dashboard.components import edit_form
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.dashboard.jobs import DONE, FAILED, QUEUE, Job, Opens, Report
from headscope.app.dashboard.visitor import visitor
from headscope.app.report.scores import interval_text
from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read

VIEW = "the text in view"
TASK_PROMPTS = 16
KIND = "what if"


def draw(
    key: cache.RunKey,
    capture: xr.Dataset,
    layer: int,
    head: int,
    *,
    others: Sequence[str] = (),
    opens: Opens | None = None,
    task: str | None = None,
) -> None:
    """Let the user edit heads, the picked one to begin with, and show the last answer.

    ``others`` are edited with it, unless the user takes them out; ``opens`` is where the answer is
    shown, the screen of the head if not given. A screen without a text in view names the ``task``
    that is offered first; one that only its file knows is not among those offered.
    """
    single = capture.attrs.get("attention", "self") == "self" and "token_id" in capture.coords
    if not (single and predicts(capture)):
        st.markdown("This model predicts no next token, so there is nothing to measure.")
        return
    try:
        _draw_form(key, capture, layer, head, others, opens, task)
    except HeadscopeError as refusal:
        error(refusal)
    job = QUEUE.last(visitor(), KIND, key.path)
    if job is not None and job.state == FAILED:
        error(job.error)
    elif job is not None and job.state == DONE:
        _show(job.title, job.result)


def _draw_form(
    key: cache.RunKey, capture: xr.Dataset, layer: int, head: int, others: Sequence[str],
    opens: Opens | None, task: str | None,
) -> None:  # fmt: skip
    """Draw the form, and queue the question when it is sent."""
    among = {label(pair): pair for pair in heads(capture)}
    picked = label((layer, head))
    first = [name for name in dict.fromkeys((picked, *others)) if name in among]
    names = st.multiselect(
        "Heads", list(among), default=first,
        # A key of its own for each picked head, so that picking another one begins anew.
        key=f"what_if_heads_{'_'.join(first) or picked}",
    )  # fmt: skip
    kinds = edit_form.kinds()
    name = st.selectbox(
        "What is done to them", list(kinds), key="what_if_edit",
        format_func=lambda name: edit_form.title(kinds[name]),
    )  # fmt: skip
    values = edit_form.draw(kinds[name])
    measure = f"the metric of {TASK_PROMPTS} prompts of a task"
    if task is None:
        offered = [VIEW, *tasks.names()]
        measure = f"the loss on every token of the text in view, or {measure}"
    else:
        offered = sorted(tasks.names(), key=lambda name: name != task)
    on = st.selectbox(
        "Measured on", offered, key="what_if_on", help=f"{measure[0].upper()}{measure[1:]}."
    )
    if not st.button("Run with and without", key="what_if_run", disabled=not names):
        return
    ids = [_ids(key, capture)] if on == VIEW else None

    def do(report: Report) -> xr.Dataset:
        from headscope.analyses.comparison import what_if
        from headscope.app.pipeline import open_model
        from headscope.probes.storage import run_folder

        model = open_model(run_folder.open(key.path), load=cache.job_loader(report))
        prompts: Any = ids or tasks.make(on, tokenizer=model.tokenizer, n=TASK_PROMPTS)
        edit = edit_form.build(kinds[name], [among[name] for name in names], values, model, prompts)
        tokens = sum(map(len, read(model, prompts).ids))
        layers = len(model.geometry.attending)
        with reporting(partial(report, "running the model"), 2 * tokens * layers):
            return what_if(model, prompts, (edit,))

    question = f"{', '.join(names)}: {edit_form.title(kinds[name])}{_listed(values)}, on {on}"
    QUEUE.submit(
        Job(
            KIND, question, visitor(), do, about=(key.path, question, ids),
            message="the answer is below the question",
            opens=opens
            or ("heads", {"run": Path(key.path).name, "layer": layer, "head": head,
                          "tab": "What if"}, "See the head"),
        )
    )  # fmt: skip
    st.rerun()


def _listed(values: Mapping[str, Any]) -> str:
    """List the fields of an edit that the user has filled in."""
    filled = ((name, value) for name, value in values.items() if value not in (None, ""))
    listed = ", ".join(f"{name} {value}" for name, value in filled)
    return f" ({listed})" if listed else ""


def _ids(key: cache.RunKey, capture: xr.Dataset) -> Any:
    """Return the ids of the text in view: the user's own, or a prompt of the run."""
    text = st.session_state.get("text") or ""
    if text.strip():
        return cache.read_text(key, text)
    prompt = int(st.session_state.get("prompt") or 0)
    ids = capture["token_id"].transpose("prompt", "query").values[prompt]
    return tuple(ids[: int(capture["length"][prompt])].tolist())


def _show(question: str, answer: xr.Dataset) -> None:
    """Show the metric, the loss on every token and the next words, before and after."""
    st.markdown(f"**{plain(question)}**")
    score = answer["score"]
    units = str(score.attrs["units"])
    values, lower, upper = (
        [*answer[f"score{end}"].values, answer[f"change{end}"].item()]
        for end in ("", "_lower", "_upper")
    )
    rows = {
        "": [*score["condition"].values.tolist(), "change"],
        "value": [viz.measured(float(value), units) for value in values],
        "95 % interval": list(map(interval_text, lower, upper)),
    }
    st.table(pd.DataFrame(rows), border="horizontal", hide_index=True)
    st.markdown(f"{score.attrs['long_name']}; {score.attrs['convention']}. {answer.attrs['note']}")
    if "loss" in answer:
        before, after = (answer["loss"].isel(condition=at, drop=True) for at in (0, 1))
        # The least loss is 0, which is no bound of a change.
        change = (
            (after - before)
            .drop_attrs(deep=False)
            .assign_attrs(
                long_name="Change of the loss on each token", units="nats", scale="diverging"
            )
        )
        for key, array in (("change", change), ("loss", answer["loss"])):
            st.plotly_chart(
                viz.choose(array).figure(array), key=f"what_if_{key}",
                config={"displaylogo": False},
            )  # fmt: skip
        chances = answer["next_probability"].transpose("word", "condition")
        table = pd.DataFrame(
            chances.values, columns=pd.Index(chances["condition"].values),
            index=pd.Index([viz.visible(word) for word in chances["word"].values.tolist()],
                           name="next word"),
        )  # fmt: skip
        st.table(table.map(viz.amount), border="horizontal")
