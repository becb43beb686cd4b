"""The form of a new run: a model and prompts, what it will take, then the capture as a job."""

import hashlib
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import job_tray
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.dashboard.jobs import DONE, QUEUE, Job, Report
from headscope.app.dashboard.launch import UPLOAD
from headscope.app.dashboard.visitor import visitor
from headscope.app.prompt_files import read_prompts
from headscope.app.run_estimate import RunEstimate, estimate
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.probes import constructed
from headscope.probes.bundled import BUNDLED
from headscope.probes.models import packaged

OTHER = "another model"
# Characters of a pasted text.
LONGEST = 500_000
KINDS = ["txt", "jsonl", "ndjson", "json", "csv", "tsv"]
NAME = re.compile(r"\w[\w.-]{0,63}")
LINES, WHOLE, FILE = "a prompt a line", "one prompt", "upload a file"


def draw(folder: Path) -> None:
    """Draw the form of a new run in a folder."""
    st.header("New run")
    st.caption(
        "Captures what every head of a model does on your prompts, as `headscope capture` does. "
        "Everybody who opens this dashboard can see the run."
    )
    with st.container(key="stack_new_run"):
        left, right = st.columns(2, gap="large")
    with left:
        source = _model()
    with right:
        kind = st.segmented_control(
            "Prompts", [LINES, WHOLE, FILE], default=LINES, required=True, key="new_kind",
            persist_state="session",
        )  # fmt: skip
        try:
            prompts = _prompts(kind)
        except HeadscopeError as refusal:
            error(refusal)
            prompts = None
    with left:
        start = (
            f"{re.sub(r'[^A-Za-z0-9]+', '-', source.rpartition('/')[2])[:40].strip('-') or 'run'}"
        )
        name = st.text_input(
            "Name of the run", key="new_name", placeholder=_new_name(folder, start), max_chars=64,
            persist_state="session",
        ) or _new_name(folder, start)  # fmt: skip
    if source and prompts is not None:
        _steps(folder, name, source, prompts)


def _model() -> str:
    """Ask for the model; "" while there is none that can be loaded."""
    models = [*BUNDLED, *packaged.PACKAGED, *constructed.names(), OTHER]
    state.take("new_model", models)
    chosen = st.selectbox("Model", models, key="new_model", persist_state="session")
    if chosen == OTHER:
        path = st.text_input(
            "Folder, GGUF file or hub name", key="new_path", persist_state="session",
            help="A folder written by save_pretrained, on the machine that serves the dashboard. A "
            "hub name downloads the weights. Only safetensors and GGUF are read; no code is run.",
        )  # fmt: skip
        return str(path or "").strip()
    if chosen in packaged.PACKAGED:
        model = packaged.PACKAGED[chosen]
        st.caption(plain(model.about))
        if not packaged.is_fetched(chosen):
            st.info(f"Not fetched yet: {model.download} MB, {model.disk} MB on disk. Fetch it with")
            st.code(f"headscope models get {chosen}", language=None)
            return ""
    return str(chosen)


def _prompts(kind: str) -> Any:
    """Ask for the prompts, as a prompt file holds them; None while there are none."""
    if kind == FILE:
        file = st.file_uploader(
            f"{', '.join(KINDS)}; at most {UPLOAD} MB", type=KINDS, key="new_file",
            max_upload_size=UPLOAD,
            help="Text, a prompt a line; JSON with text, prompt, messages or input_ids; a table "
            "with a column text or prompt; or a task with clean, corrupted, answers and wrong.",
        )  # fmt: skip
        return None if file is None else _read(file.name, file.getvalue())
    text = st.text_area(
        f"Text, at most {LONGEST:,} characters", key="new_text", max_chars=LONGEST, height=150,
        persist_state="session",
    )  # fmt: skip
    if not text or not text.strip():
        return None
    return [text] if kind == WHOLE else _read("pasted.txt", text.strip("\n").encode())


@st.cache_data(max_entries=4, show_spinner=False)
def _read(name: str, content: bytes) -> Any:
    """Read prompts as the command line does, from a file of that ending."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"prompts{Path(name).suffix}"
        file.write_bytes(content)
        try:
            return read_prompts(file)
        except HeadscopeError as refusal:
            raise type(refusal)(str(refusal).replace(str(file), Path(name).name)) from None


def _new_name(folder: Path, start: str) -> str:
    """Return the name of a new folder."""
    names = [start, *(f"{start}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (folder / name).exists())


def _steps(folder: Path, name: str, source: str, prompts: Any) -> None:
    """Offer the estimate, and with it the capture."""
    if not NAME.fullmatch(name):
        error(f"name: {name!r} is no name of a run; give letters, digits, dots, - and _")
        return
    if (folder / name).exists():
        error(f"name: {name} is there already; choose another")
        return
    about = (source, hashlib.sha256(repr(prompts).encode()).hexdigest())
    job = QUEUE.find(visitor(), ("estimate", about))
    estimate = job.result if job is not None and job.state == DONE else None
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Estimate what it takes", key="new_estimate", icon=":material/timer:",
            disabled=job is not None and not job.ended, type="secondary" if estimate else "primary",
        ):  # fmt: skip
            job_tray.submit(_estimating(source, prompts, about))
        if st.button(
            "Capture", key="new_start", icon=":material/play_arrow:", disabled=estimate is None,
            type="primary" if estimate else "secondary",
            help=None if estimate else "Estimate first: tokens, seconds and bytes.",
        ):  # fmt: skip
            job_tray.submit(_capturing(folder / name, source, prompts))
    if estimate is not None:
        _show(estimate)


def _show(estimate: RunEstimate) -> None:
    from headscope.analyses._runtime.cost import duration
    from headscope.probes.capturing.memory_estimate import format_bytes

    memory, available = format_bytes(estimate.memory), format_bytes(estimate.available)
    numbers = {
        "prompts": f"{estimate.prompts:,}",
        "tokens": f"{estimate.tokens:,}",
        "longest prompt": f"{estimate.longest:,} tokens",
        "time": f"about {duration(estimate.seconds)}",
        "on disk": format_bytes(estimate.disk),
        "memory at the peak": f"{memory} of {available}",
    }
    with st.container(horizontal=True, key="new_run_estimate"):
        for label, value in numbers.items():
            st.metric(label, value, width="content")


def _estimating(source: str, prompts: Any, about: Any) -> Job:
    def do(report: Report) -> RunEstimate:
        from headscope.app.pipeline import needed

        model = _refusing_images(cache.job_loader(report), source)
        report("timing a few tokens", 0, 1)
        return estimate(model, prompts, needed(model))

    title = f"Estimate of a run of {source}"
    return Job("estimate", title, visitor(), do, message="see the form of the new run", about=about)


def _capturing(folder: Path, source: str, prompts: Any) -> Job:
    def do(report: Report) -> None:
        from headscope.app.pipeline import capture_run

        if folder.exists():
            raise InvalidInput(f"name: {folder.name} is there already; choose another")
        load = partial(_refusing_images, cache.job_loader(report))
        try:
            capture_run(folder, source, prompts=prompts, load=load, progress=report)
        except BaseException:  # cancelled, too: nothing half written stays
            shutil.rmtree(folder, ignore_errors=True)
            raise

    return Job(
        "capture", f"Capture of {folder.name}", visitor(), do, remains="No run was written.",
        message="captured", opens=("heads", {"run": folder.name}, "Browse its heads"),
    )  # fmt: skip


def _refusing_images(load: Any, source: str, **loading: Any) -> Any:
    model = load(source, **loading)
    # Their prompts would be paths of files of this machine.
    if model.reads == "images":
        raise InvalidInput(
            "model: it reads images; headscope capture MODEL --prompts FILE takes them"
        )
    return model
