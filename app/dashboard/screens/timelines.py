"""A score of every head over the training of a model, and when heads emerge."""

from pathlib import Path

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.analyses.series import emergence, timeline_folder
from headscope.analyses.series.joined import DIM
from headscope.app.dashboard import cache, screens, state
from headscope.app.dashboard.components import picked_head
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.exports import tables
from headscope.app.report.page import is_doubtful
from headscope.app.report.scores import GRID
from headscope.app.report.timeline import drawn, interval, order_rows, scores, scores_in_order
from headscope.kernels.errors import HeadscopeError
from headscope.probes.storage import run_folder

TITLE = "Timelines"
# Not the head of the other screens: a timeline is of another model.
LINE = "line"


def opens(folder: Path | None) -> bool:
    """Return whether the dashboard was started on a timeline."""
    return folder is not None and timeline_folder.holds(folder)


def draw() -> None:
    """Draw the screen for the timeline that the link names, or the first beside the run."""
    folder = cache.folder()
    paths = {} if folder is None else _timelines(folder)
    st.title(TITLE)
    if folder is None or not paths:
        st.info(
            "There is no timeline beside this run. `headscope timeline headscope/induction@* "
            "--analysis head_types --out runs/emergence` makes one of the shipped checkpoints."
        )
        return
    names = list(paths)
    begin = folder.name if folder.name in names else names[0]
    state.take("timeline", names, begin, decides=True)
    chosen = st.selectbox("Timeline", names, key="timeline", persist_state="session")
    path = paths[chosen]
    try:
        timeline = _read(str(path), (path / timeline_folder.WHOLE).stat().st_mtime_ns)
    except (HeadscopeError, OSError) as refusal:
        error(refusal)
        return
    _show(timeline, chosen, folder)
    state.show_warnings()


def _timelines(run: Path) -> dict[str, Path]:
    """List the finished timelines in the folder of a run, by name."""
    folders = (file.parent for file in sorted(run.parent.glob(f"*/{timeline_folder.MANIFEST}")))
    return {folder.name: folder for folder in folders if timeline_folder.holds(folder)}


@st.cache_resource(max_entries=4, show_spinner="Reading the timeline …")
def _read(path: str, version: int) -> xr.Dataset:
    return timeline_folder.load(path)


def _show(timeline: xr.Dataset, chosen: str, run: Path) -> None:
    note = plain(f"{timeline.attrs['model']}: {timeline.attrs['note']}")
    (st.warning if is_doubtful(timeline) else st.caption)(note)
    shown = drawn(timeline)
    state.take("score", shown, decides=True)
    with st.container(key="stack_timeline"):
        left, right = st.columns([2, 3], gap="medium")
    # Not by their titles: the link would carry these.
    score = left.selectbox("Score", shown, key="score", persist_state="session")
    name = f"{chosen}-{score}"
    of_heads = score in scores(timeline)
    picked = ""
    if of_heads:
        order = emergence(timeline, score).attrs
        with left:
            picked = _heads(timeline, score, [row["name"] for row in order["order"]], run)
    with right:
        picked_head.chart(
            viz.draw(timeline, score, picked=picked), "lines", name,
            "The chosen score over the training of the model, a line for each head.",
            on_pick=_pick,
        )  # fmt: skip
        attrs = timeline[score].attrs
        about = ". ".join(str(attrs[key]) for key in ("convention", "source") if attrs.get(key))
        st.caption(plain(about))
    if of_heads:
        st.subheader("Emergence, in order")
        if order["order"]:
            final = f"at the end ({timeline[score].attrs.get('units', '')})"
            st.table(
                [
                    {"head": row["name"], "at step": viz.amount(row["step"]),
                     "surely between steps": interval(row), final: viz.amount(row["final"])}
                    for row in order["order"]
                ],
                border="horizontal",
            )  # fmt: skip
        st.caption(plain(order["convention"]))
    _downloads(timeline, score, name)
    _order(timeline, chosen)
    with st.expander("By checkpoint", icon=":material/fingerprint:"):
        st.json(dict(timeline.attrs["by_checkpoint"]), expanded=1)


def _order(timeline: xr.Dataset, chosen: str) -> None:
    """Draw which score rises first, and what is known of the order."""
    ordered = scores_in_order(timeline)
    if ordered is None:
        return
    st.subheader("Which score rises first")
    st.plotly_chart(
        viz.draw(ordered, "progress"), key="order", on_select="ignore",
        alt="How much of its change the first entry of each score has gone through, over training.",
        config={"displayModeBar": False, "toImageButtonOptions": {"filename": f"{chosen}-order"}},
    )  # fmt: skip
    head = ("score", "first", "at step", "surely between steps", "distinct from the one before")
    rows = [dict(zip(head, row, strict=True)) for row in order_rows(ordered)]
    st.table(rows, border="horizontal")
    st.caption(plain(ordered.attrs["note"]))


def _heads(timeline: xr.Dataset, score: str, emerged: list[str], run: Path) -> str:
    """Draw all heads at one checkpoint, let the user pick one, and link to runs of checkpoints."""
    names = picked_head.grid_names(timeline[score])
    # The first that emerges to begin with, and in the list the others in their order.
    ordered = [name for name in dict.fromkeys(part for row in emerged for part in row.split(", "))
               if any(name in row for row in names)]  # fmt: skip
    others = [name for row in names for name in row if name not in ordered]
    picked = picked_head.select([*ordered, *others], LINE)
    at = picked_head.indices_of(names, picked)
    points = [str(point) for point in timeline[DIM].values.tolist()]
    state.take(DIM, points, points[-1])
    point = st.select_slider(
        "All heads at", points, key=DIM, persist_state="session",
        help="One range of colours for all checkpoints.",
    )  # fmt: skip
    if set(timeline[score].dims) == {DIM, *GRID}:
        _grid(timeline, score, point, at, names)
    _links(timeline, point, picked, at, run)
    return picked


def _grid(
    timeline: xr.Dataset, score: str, point: str, at: tuple[int, int], names: list[list[str]]
) -> None:
    array = timeline[score].isel({DIM: timeline[DIM].values.tolist().index(point)})
    attrs = timeline[score].attrs
    low, high = (float(attrs.get(end, value)) for end, value in
                 (("low", timeline[score].min()), ("high", timeline[score].max())))  # fmt: skip
    array.attrs |= {"low": low, "high": high}
    lower, upper = viz.interval(timeline, score)
    ends = [None if end is None else end.sel({DIM: point}) for end in (lower, upper)]
    view = viz.head_grid(array, lower=ends[0], upper=ends[1], picked=at)
    mount(view, "timeline_grid", pick=picked_head.pick_cell(names, LINE))


def _links(timeline: xr.Dataset, point: str, picked: str, at: tuple[int, int], run: Path) -> None:
    """Open the head in the runs here that were captured on a checkpoint of the timeline."""
    points = dict(
        zip(timeline["revision"].values.tolist(), timeline[DIM].values.tolist(), strict=True)
    )
    files = sorted(run.parent.glob(f"*/{cache.MANIFEST}"))
    runs = {
        file.parent.name: points[revision]
        for file in files
        if (revision := _revision(file.parent, file.stat().st_mtime_ns)) in points
    }
    if not runs:
        st.caption(f"No run beside it shows {picked}. This captures one of the checkpoint:")
        arguments = (
            f"{timeline.attrs['model']}@{point} --task {timeline.attrs.get('task') or 'induction'}"
        )
        st.code(f"headscope capture {arguments} --out RUN", language=None, wrap_lines=True)
    elif not (run / cache.MANIFEST).exists():
        st.caption(plain(f"Runs beside it show {picked}, too: {', '.join(runs)}. This opens them:"))
        st.code(f"headscope app {run.parent}", language=None, wrap_lines=True)
    else:
        for name, checkpoint in runs.items():
            where = {"run": name, "layer": at[0], "head": at[1]}
            label = f"Open {picked} in Heads: {name}, {checkpoint}"
            screens.link("heads", label, where, ":material/grid_on:")


@st.cache_data(max_entries=512, show_spinner=False)
def _revision(path: Path, version: int) -> str:
    """Read which model a run is of; "?" where that cannot be read."""
    try:
        return str(run_folder.open(path).manifest["revision"])
    except HeadscopeError:
        return "?"


def _pick(line: str) -> None:
    """Pick the head that a line is of."""
    head = next(part for part in line.split(", ") if part[:1] == "L" and "H" in part)
    picked_head.pick(head, LINE)


def _downloads(timeline: xr.Dataset, score: str, name: str) -> None:
    array = timeline[score]
    lower, upper = viz.interval(timeline, score)
    arrays = {score: array, f"{score}_lower": lower, f"{score}_upper": upper}
    table = xr.Dataset({key: values for key, values in arrays.items() if values is not None})
    meaning = {key: str(array.attrs.get(key, "")) for key in ("units", "convention")}
    about = {"model": str(timeline.attrs["model"]), "variable": score, "units": meaning["units"]}
    frame = table.reset_coords(drop=True).assign_coords(step=timeline["step"]).to_dataframe()
    labelled = tables.labelled(frame.reset_index(), dict.fromkeys(map(str, table), meaning), about)
    with st.container(horizontal=True):
        for kind in tables.FORMATS:
            st.download_button(
                tables.LABELS[kind], tables.encode_table(kind, labelled, dict(timeline.attrs)),
                f"{name}.{kind}", key=f"download_{kind}", icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip
