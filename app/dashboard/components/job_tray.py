"""The jobs of a visitor on every screen: phase, share, time left, cancel; and those of others."""

import streamlit as st

from headscope.app.dashboard import screens
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.dashboard.jobs import CANCELLED, DONE, FAILED, QUEUE, RUNNING, Job
from headscope.app.dashboard.visitor import visitor
from headscope.app.report.answer import shortened
from headscope.kernels.errors import HeadscopeError

SEEN = "ended_jobs"
# Seconds between two looks, while something runs and while nothing does.
BUSY, IDLE = 1.0, 5.0
LONGEST = 80


def draw() -> None:
    """Draw the tray, and keep it up to date while the page stands still."""
    st.session_state[SEEN] = _ended()
    st.fragment(_tray, run_every=BUSY if QUEUE.unfinished else IDLE)()


def submit(job: Job) -> None:
    """Queue a job and show it; a refusal is shown in place."""
    try:
        QUEUE.submit(job)
    except HeadscopeError as refusal:
        error(refusal)
        return
    st.rerun()


def _ended() -> set[int]:
    return {id(job) for job in QUEUE.of(visitor()) if job.ended}


def _tray() -> None:
    if _ended() - st.session_state[SEEN]:
        st.rerun()  # the whole page: a screen may show what the job has made
    own_jobs = [job for job in QUEUE.of(visitor()) if not job.dismissed]
    unfinished = QUEUE.unfinished
    others = [job for job in unfinished if job.owner != visitor()]
    if not own_jobs and not others:
        return
    with st.container(key="job_tray", border=True, gap="small"):
        for number, job in enumerate(own_jobs):
            _row(number, job, unfinished)
        if others:
            running = [f" ({job.share:.0%} done)" for job in others if job.state == RUNNING]
            count = f"{len(others)} job{'s' * (len(others) > 1)} of other visitors"
            st.caption(f"Busy: {count}{''.join(running)}. One job runs at a time.")


def _row(number: int, job: Job, unfinished: list[Job]) -> None:
    title = plain(shortened(job.title, LONGEST))
    with st.container(horizontal=True, vertical_alignment="center", key=f"job_{number}"):
        if job.state == RUNNING:
            status = "stopping where it can be left" if job.stopping else job.phases.describe()
            st.progress(job.share, f"**{title}** · {plain(status)}")
        elif not job.ended:
            st.markdown(
                f"**{title}** · waiting, {unfinished.index(job)} before it", width="stretch"
            )
        else:
            _end(job, title)
        if not job.ended:
            st.button(
                "Cancel", key=f"cancel_{id(job)}", icon=":material/cancel:", on_click=QUEUE.cancel,
                args=(job,), disabled=job.stopping,
            )  # fmt: skip
        else:
            if job.state == DONE and job.opens is not None:
                screen, link, label = job.opens
                screens.link(screen, label, link, ":material/arrow_forward:", job)
            st.button("Close", key=f"close_{id(job)}", on_click=_dismiss, args=(job,))
    if job.trace:
        with st.expander("Traceback"):
            st.code(job.trace, language=None, wrap_lines=True)


def _end(job: Job, title: str) -> None:
    marks = {DONE: ":material/check_circle:", FAILED: ":material/error:"}
    mark = marks.get(job.state, ":material/cancel:")
    texts = {DONE: job.message or "done", CANCELLED: f"cancelled. {job.remains}"}
    text = texts.get(job.state, f"failed: {job.error}. {job.remains}")
    st.markdown(f"{mark} **{title}** · {plain(text)}", width="stretch")


def _dismiss(job: Job) -> None:
    job.dismissed = True
