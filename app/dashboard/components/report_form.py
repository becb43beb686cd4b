"""The report of a run, of the sections that the user chooses, built by a job."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from headscope.app.dashboard import cache, capture_scores
from headscope.app.dashboard.components import job_tray
from headscope.app.dashboard.components.plain import error
from headscope.app.dashboard.jobs import DONE, FAILED, QUEUE, Job, Report
from headscope.app.dashboard.visitor import visitor

KIND = "report"
BUILDING = "building the report"
HEIGHT = 800
PRINT = (
    "To print it, or to save it as PDF: open the downloaded page in a browser, unfold the parts "
    "that you want (or press Open all), and print; what is folded stays out, and intervals are "
    "written beside the numbers."
)


class Built(NamedTuple):
    """A report: one page that needs nothing else, and the page with its tables, zipped."""

    page: str
    archive: bytes


def draw(key: cache.RunKey, name: str) -> None:
    """Ask for the sections, build the report of them, and offer what was built."""
    results = cache.run(key)[2]
    names = [
        section
        for section, result in results.items()
        if section != capture_scores.NAME and "skipped" not in result.attrs
    ]
    chosen = st.multiselect(
        "Sections", names, default=names, key="sections", persist_state="session",
        help="The answer comes first; it follows importance where that is among them.",
    )  # fmt: skip
    if st.button(
        "Build the report", key="build_report", icon=":material/summarize:", disabled=not chosen
    ):
        job_tray.submit(building(key, [section for section in names if section in chosen]))
    job = QUEUE.last(visitor(), KIND, key.path)
    if job is not None and job.state == FAILED:
        error(job.error)
    if job is None or job.state != DONE:
        st.caption(PRINT)
        return
    built: Built = job.result
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, data, file, mime in (
            ("HTML", built.page, f"{name}.html", "text/html"),
            ("HTML and tables (zip)", built.archive, f"{name}.zip", "application/zip"),
        ):
            st.download_button(
                label, data, file, mime, key=f"download_{mime}", icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip
        shown = st.toggle("Preview", key="preview")
        st.markdown(f"{len(built.page) / 1e6:.1f} MB · {job.title}")
    st.caption(PRINT)
    if shown:
        st.iframe(built.page, height=HEIGHT, alt="The report, as it is downloaded.")


def building(key: cache.RunKey, sections: list[str]) -> Job:
    """Return the job that builds the report of some analyses of a run."""

    def do(report: Report) -> Built:
        from headscope.app.report.build import html, write_files
        from headscope.probes.storage import run_folder

        report(BUILDING, 0, 2)
        run = run_folder.open(key.path)
        results = run.results()
        included = {name: results[name] for name in sections}
        page = html(run.manifest, included, run.name, files=False)
        report(BUILDING, 1, 2)
        archive = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), run.manifest, included, run.name)
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
                for file in sorted(Path(folder).iterdir()):
                    packed.write(file, file.name)
        report(BUILDING, 2, 2)
        return Built(page, archive.getvalue())

    count = f"{len(sections)} section{'s' * (len(sections) > 1)}"
    return Job(
        KIND, f"Report of {Path(key.path).name}, {count}", visitor(), do,
        message="it is below Build the report",
        opens=("importance", {"run": Path(key.path).name}, "See the report"),
        about=(key.path, tuple(sections)),
    )  # fmt: skip
