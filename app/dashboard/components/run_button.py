"""The buttons that run an analysis and say what it takes, and an offer where it was not run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from headscope import analyses
from headscope.app.dashboard import cache, screens
from headscope.app.dashboard.components import catalogue, job_tray
from headscope.app.dashboard.components.plain import plain
from headscope.app.dashboard.jobs import QUEUE
from headscope.app.dashboard.visitor import visitor


def draw(
    key: cache.RunKey,
    name: str,
    options: Mapping[str, Any],
    number: int | None,
    wrong: str = "",
    suffix: str = "one",
) -> None:
    """Draw Run and Estimate, and the cost; ``wrong`` says why it cannot be run like this."""
    job = catalogue.analyzing(key, [name], options, number)
    queued = QUEUE.find(visitor(), job.about)
    pending = queued is not None and not queued.ended
    cost = catalogue.known_cost(key, name, options, number)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Queue" if QUEUE.unfinished else "Run", key=f"run_{suffix}",
            icon=":material/play_arrow:", type="primary", disabled=pending or bool(wrong),
        ):  # fmt: skip
            job_tray.submit(job)
        if st.button(
            "Estimate", key=f"estimate_{suffix}", icon=":material/timer:",
            disabled=cost is not None or bool(wrong),
        ):  # fmt: skip
            job_tray.submit(catalogue.estimating(key, [name], options, number))
        cost_text = catalogue.cost_text(cost) or "not estimated with these options"
        st.markdown(f"Cost here: {plain(cost_text)}")


def offer(key: cache.RunKey, name: str, why: str) -> None:
    """Offer to run an analysis whose result is missing here; ``why`` says what it would show."""
    with st.container(border=True):
        st.markdown(f"**{plain(why)}**")
        st.markdown(plain(analyses.summary(name)))
        if refused := catalogue.refusals(key).get(name):
            st.warning(f"Does not apply to this run: {plain(refused)}", icon=":material/block:")
            return
        skipped = cache.run(key)[2].get(name)
        if skipped is not None and "skipped" in skipped.attrs:
            st.warning(f"Was not run: {plain(skipped.attrs['skipped'])}", icon=":material/block:")
        draw(key, name, {}, None, suffix=name)
        where = {"run": Path(key.path).name, "analysis": name}
        screens.link("analyses", "Choose its options", where, ":material/tune:")
