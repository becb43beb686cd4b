"""What if: some heads are edited, and a text or a task says what changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._interventions.next_token_loss import predicts
from headscope.analyses._runtime.progress import reporting
from headscope.analyses._runtime.results import heads as known_heads
from headscope.analyses._runtime.results import label
from headscope.app.dashboard import cache
from headscope.app.report.scores import interval_text
from headscope.kernels.errors import HeadscopeError

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

ZERO, MEAN, HIDE, WINDOW, TEMPERATURE, PATTERN = (
    "set to zero", "set to their mean", "hide a token from them", "see the last tokens only",
    "another temperature", "another pattern",
)  # fmt: skip
EDITS = (ZERO, MEAN, HIDE, WINDOW, TEMPERATURE, PATTERN)
VIEW = "the text in view"
TASK_PROMPTS = 16
ANSWER = "what_if_answer"


def draw(path: str, version: str, capture: xr.Dataset, layer: int, head: int) -> None:
    """Let the user edit heads, the picked one to begin with, and show the answer."""
    with st.expander("What if these heads were edited?", icon=":material/build:"):
        if not _asks(capture):
            st.markdown("This model predicts no next token, so there is nothing to measure.")
            return
        chosen, kind, value, on = _controls(capture, layer, head)
        if st.button("Run with and without", key="what_if_run", disabled=not chosen):
            try:
                _answer(path, version, capture, chosen, kind, value, on)
            except HeadscopeError as refusal:
                st.session_state.pop(ANSWER, None)
                st.error(str(refusal), icon=":material/error:")
        kept = st.session_state.get(ANSWER)
        if kept is not None and kept["run"] == path:
            _show(kept["asked"], kept["answer"])


def _asks(capture: xr.Dataset) -> bool:
    own = capture.attrs.get("attention", "self") == "self" and "token_id" in capture.coords
    return own and predicts(capture)


def _controls(
    capture: xr.Dataset, layer: int, head: int
) -> tuple[list[tuple[int, int]], str, Any, str]:
    from headscope.probes.interventions.named_patterns import PATTERNS
    from headscope.probes.prompts import tasks

    among = {label(one): one for one in known_heads(capture)}
    picked = label((layer, head))
    named = st.multiselect(
        "Heads", list(among), default=[picked] if picked in among else [],
        # A key of its own for each picked head, so that picking another one begins anew.
        key=f"what_if_heads_{picked}",
    )  # fmt: skip
    kind = st.selectbox("What is done to them", EDITS, key="what_if_edit")
    value: Any = None
    if kind == HIDE:
        value = st.number_input("Position of the token, 0 is the first, -1 the last", value=0,
                                step=1, key="what_if_token")  # fmt: skip
    elif kind == WINDOW:
        value = st.number_input("Number of tokens, the head's own included", value=4, min_value=1,
                                step=1, key="what_if_window")  # fmt: skip
    elif kind == TEMPERATURE:
        value = st.number_input("Temperature: above 1 spreads the attention", value=2.0,
                                min_value=0.01, key="what_if_temperature")  # fmt: skip
    elif kind == PATTERN:
        value = st.selectbox("Pattern", list(PATTERNS), format_func=PATTERNS.__getitem__,
                             key="what_if_pattern")  # fmt: skip
    on = st.selectbox(
        "Measured on", [VIEW, *tasks.names()], key="what_if_on",
        help=f"The loss on every token of the text in view, or the metric of {TASK_PROMPTS} "
        "prompts of a task.",
    )  # fmt: skip
    return [among[one] for one in named], kind, value, on


def _answer(
    path: str,
    version: str,
    capture: xr.Dataset,
    chosen: Sequence[tuple[int, int]],
    kind: str,
    value: Any,
    on: str,
) -> None:
    """Run the model with and without the edit, and keep the answer in the session."""
    from headscope.analyses.comparison import what_if
    from headscope.probes.prompts import tasks

    st.session_state.pop(ANSWER, None)
    model = cache.model(path, version)
    given: Any = (
        [_ids(path, version, capture)]
        if on == VIEW
        else tasks.make(on, tokenizer=model.tokenizer, n=TASK_PROMPTS)
    )
    bar = st.progress(0.0, "Running the model …")

    def report(done: float, total: float) -> None:
        bar.progress(done / total, f"{done:g} of {total:g} passes")

    with reporting(report):
        answer = what_if(model, given, _edits(model, given, chosen, kind, value))
    bar.empty()
    what = f"{kind} ({value})" if value is not None else kind
    asked = f"{', '.join(map(label, chosen))}: {what}, on {on}"
    st.session_state[ANSWER] = {"run": path, "asked": asked, "answer": answer}


def _ids(path: str, version: str, capture: xr.Dataset) -> Any:
    """Return the ids of the text in view: the user's own, or a prompt of the run."""
    text = st.session_state.get("text") or ""
    if text.strip():
        return cache.read_text(path, version, text)
    at = int(st.session_state.get("prompt") or 0)
    ids = capture["token_id"].transpose("prompt", "query").values[at]
    return tuple(int(one) for one in ids[: int(capture["length"][at])])


def _edits(
    model: Model, given: Any, chosen: Sequence[tuple[int, int]], kind: str, value: Any
) -> tuple[Edit, ...]:
    """Return the edits of probes.edits that the controls stand for."""
    from headscope.probes import capture, interventions

    heads = tuple(chosen)
    if kind == MEAN:
        from headscope.analyses._interventions.ablation import mean_z

        return (interventions.Replace(heads, mean_z(capture(model, given, stats=(), keep=("z",)))),)
    if kind == HIDE:
        return (interventions.KnockOut(heads, keys=(int(value),)),)
    if kind == WINDOW:
        return (interventions.Window(heads, recent=int(value), first=0),)
    if kind == TEMPERATURE:
        return (interventions.Temperature(heads, float(value)),)
    if kind == PATTERN:
        return (interventions.Inject(heads, str(value)),)
    return (interventions.Ablate(heads),)


def _show(asked: str, answer: xr.Dataset) -> None:
    """Show the metric, the loss on every token and the next words, before and after."""
    st.markdown(f"**{asked}**")
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
        st.plotly_chart(
            viz.choose(answer["loss"]).figure(answer["loss"]), key="what_if_loss",
            config={"displaylogo": False},
        )  # fmt: skip
        chances = answer["next_probability"].transpose("word", "condition")
        table = pd.DataFrame(
            chances.values, columns=pd.Index(chances["condition"].values),
            index=pd.Index([viz.visible(word) for word in chances["word"].values.tolist()],
                           name="next word"),
        )  # fmt: skip
        st.table(table.map("{:.3f}".format), border="horizontal")
