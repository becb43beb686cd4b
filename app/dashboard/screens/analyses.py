"""The analyses by question, what each takes on a run, and the buttons that run them."""

from pathlib import Path
from typing import Any

import streamlit as st

from headscope import analyses
from headscope.app.dashboard import cache, screens, state
from headscope.app.dashboard.components import (
    catalogue,
    job_tray,
    option_form,
    run_button,
    run_picker,
)
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.report.scores import collect
from headscope.kernels.errors import HeadscopeError

TITLE = "Analyses"
ALL = "all"
TABLE = "analysis_table"


def draw() -> None:
    """Draw the catalogue for the run that the link names, and one analysis in full."""
    st.title(TITLE)
    folder = run_picker.opened(" to analyse")
    if folder is None:
        return
    with st.container(key="stack_choice"):
        left, right = st.columns([3, 1])
    path = run_picker.choose(folder, left)
    families = [ALL, *analyses.families()]
    state.take("question", families, decides=True)
    family = right.selectbox("Question", families, key="question", persist_state="session")
    key = cache.run_key(path)
    try:
        cache.run(key)
    except HeadscopeError as refusal:
        error(refusal)
        return
    names = analyses.names() if family == ALL else analyses.families()[family]
    if family != ALL:
        st.caption(plain(analyses.heading(family)))
    table = st.container()
    name = _picked(names)
    with table:
        _catalogue(key, names)
    state.show_warnings()
    _analysis(key, name)


def _picked(names: list[str]) -> str:
    state.take("analysis", analyses.names(), names[0])
    if st.session_state["analysis"] not in names:  # of another question
        st.session_state["analysis"] = names[0]
    return str(st.selectbox("Analysis", names, key="analysis", persist_state="session"))


def _catalogue(key: cache.RunKey, names: list[str]) -> None:
    rows = catalogue.rows(key, names)
    st.dataframe(
        rows, key=TABLE, hide_index=True, selection_mode="single-row", height=320,
        on_select=lambda: _pick(names),
        alt="Analyses: what each measures, its evidence, its cost on this run, and its status.",
        column_config={
            "what it measures": st.column_config.TextColumn(width="large"),
            "cost here": st.column_config.TextColumn(
                width="medium", help="Passes of the model, and their seconds on this machine."
            ),
            "evidence": st.column_config.TextColumn(
                help="Causal numbers come from an intervention, correlational ones from looking."
            ),
        },
    )  # fmt: skip
    from headscope.app.pipeline import quick

    suited = [row["analysis"] for row in rows if row["status"] != "does not apply"]
    unknown = [name for name in suited if catalogue.known_cost(key, name) is None]
    missing = [name for name in suited if not catalogue.status(key, name)]
    fast = [name for name in quick() if name in missing]
    with st.container(horizontal=True):
        if st.button(
            f"Estimate the cost of {len(unknown)}", key="estimate_all", icon=":material/timer:",
            disabled=not unknown, help="Loads the model, draws the prompts and times a few passes.",
        ):  # fmt: skip
            job_tray.submit(catalogue.estimating(key, unknown, {}, None))
        if st.button(
            f"Run the {len(fast)} quick ones" if fast else "All quick ones are done",
            key="run_quick", icon=":material/bolt:", disabled=not fast,
            help=f"Those that need the capture alone, or few passes: {', '.join(fast or quick())}",
        ):  # fmt: skip
            job_tray.submit(catalogue.analyzing(key, fast, {}, None))


def _pick(names: list[str]) -> None:
    if name := state.picked_row(TABLE, names):
        st.session_state["analysis"] = name


def _analysis(key: cache.RunKey, name: str) -> None:
    st.header(name)
    st.markdown(plain(analyses.summary(name)))
    if why := catalogue.refusals(key).get(name):
        st.warning(f"Does not apply to this run: {plain(why)}", icon=":material/block:")
        _definition(name)
        return
    _result(key, name)
    options, number = _options(key, name)
    wrong = catalogue.check(name, options)
    if wrong:
        error(wrong)
    run_button.draw(key, name, options, number, wrong)
    _definition(name)


def _options(key: cache.RunKey, name: str) -> tuple[dict[str, Any], int | None]:
    """Draw the options, and return those that differ from their defaults, and the prompts."""
    from headscope.analyses._runtime.inputs import ANY_TASK, DEFAULT_PROMPTS

    module = analyses.load(name)
    usual = getattr(module, "PROMPTS", DEFAULT_PROMPTS) if hasattr(module, "TASK") else None
    own = cache.run(key)[0].own_task() if getattr(module, "TASK", None) == ANY_TASK else None
    if own is not None:
        usual = None
        count = len(own.prompts)
        st.caption(plain(f"Asks the run's own prompts with answers, {count} of {own.name}."))
    number = usual
    with st.container(border=True, key="stack_options"):
        columns = st.columns(3)
        if usual is not None:
            number = columns[0].number_input(
                f"prompts of the task {module.TASK}", 1, 10_000, usual, 1,
                key=f"option_{name}_n", persist_state="session",
            )  # fmt: skip
        options = option_form.draw(name, columns, start=int(usual is not None))
    return options, None if number == usual else number


def _result(key: cache.RunKey, name: str) -> None:
    result = cache.run(key)[2].get(name)
    if result is None:
        return
    if "skipped" in result.attrs:
        st.info(f"Was not run: {plain(result.attrs['skipped'])}", icon=":material/block:")
        return
    with st.container(border=True):
        st.markdown(f"**Result** · {plain(result.attrs.get('note', ''))}")
        scores = list(collect({name: result}))
        if scores:
            link = {"run": Path(key.path).name, "by": scores[0]}
            screens.link("heads", "See the heads", link, ":material/grid_on:")
        else:
            st.caption("It has no score of every head; `headscope report RUN` draws it.")


def _definition(name: str) -> None:
    with st.expander("Definition and source", icon=":material/menu_book:"):
        st.text((analyses.load(name).__doc__ or "").strip())
