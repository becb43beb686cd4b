"""The tokens of a text by every method of relevance, computed by a job for the text in view."""

from functools import partial
from pathlib import Path

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses._interventions.next_token_loss import predicts
from headscope.analyses._runtime.progress import reporting
from headscope.app.dashboard import cache
from headscope.app.dashboard.components import head_detail
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.dashboard.jobs import DONE, FAILED, QUEUE, Job, Report
from headscope.app.dashboard.visitor import visitor

KIND = "token relevance"
CAUSAL = ("token replacement",)


def draw(key: cache.RunKey, capture: xr.Dataset, measured: xr.Dataset | None) -> None:
    """Ask for a text, and show its tokens by every method.

    Without an answer of this visitor's own, ``measured``, the result of the analysis faithfulness,
    has the tokens of one prompt.
    """
    if capture.attrs.get("attention", "self") != "self" or not predicts(capture):
        st.markdown("This model predicts no next token, so there is no answer to explain.")
        return
    ids = head_detail.choose_tokens(key, capture)
    if isinstance(ids, tuple):
        _queue_job(key, ids)
    job = QUEUE.last(visitor(), KIND, key.path)
    if job is not None and job.state == FAILED:
        error(job.error)
    if job is not None and job.state == DONE:
        explanation: xr.Dataset = job.result
        st.markdown(
            f"**Why {plain(viz.visible(explanation.attrs['answer']))}?** {plain(job.title)}"
        )
        _show(explanation["relevance"], explanation.attrs["refused"])
    elif measured is not None:
        st.markdown(
            f"Prompt {measured.attrs['prompt']} of {plain(measured['task'].values[0])}, as the "
            "analysis explained it; the answer is that of its question."
        )
        _show(measured["relevance"], measured.attrs["refused"].get(str(measured["task"][0]), {}))


def _queue_job(key: cache.RunKey, ids: tuple[int, ...]) -> None:
    """Offer to explain what the model says after a text, and queue it."""
    if not st.button(
        "Explain the next token by all methods", key="explain", icon=":material/search_insights:",
        help=f"One backward pass or a few a method, and one pass for every token that is replaced: "
        f"{len(ids)} here. Up to {cache.WHOLE} tokens.",
        disabled=len(ids) > cache.WHOLE,
    ):  # fmt: skip
        return

    def do(report: Report) -> xr.Dataset:
        from headscope.analyses._relevance import target
        from headscope.analyses.attribution import faithfulness
        from headscope.app.pipeline import open_model
        from headscope.probes.storage import run_folder

        model = open_model(run_folder.open(key.path), load=cache.job_loader(report))
        with reporting(partial(report, "running the model")):
            return faithfulness.explain(model, target.predicted(model, ids))

    QUEUE.submit(
        Job(
            KIND, f"What the model says after {len(ids)} tokens of {Path(key.path).name}",
            visitor(), do, about=(key.path, ids),
            message="the tokens are on the screen Attribution",
            opens=("attribution", {"run": Path(key.path).name}, "See the tokens"),
        )
    )  # fmt: skip
    st.rerun()


def _show(relevance: xr.DataArray, refused: dict[str, str]) -> None:
    mount(viz.relevance_view(relevance, causal=CAUSAL), "relevance")
    if refused:
        with st.expander(f"Methods that do not follow this text: {len(refused)}"):
            for name, why in refused.items():
                st.markdown(f"**{plain(name)}**: {plain(why)}")
