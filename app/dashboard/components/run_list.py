"""The runs of a folder: what each holds, read from its files without loading its numbers."""

from pathlib import Path
from typing import Any

import streamlit as st

from headscope.app.dashboard import cache, state
from headscope.kernels.errors import HeadscopeError
from headscope.probes.capturing.memory_estimate import format_bytes
from headscope.probes.storage import dataset_file, run_folder

TABLE = "run_table"


@st.cache_data(max_entries=512, show_spinner=False)
def card(key: cache.RunKey) -> dict[str, Any]:
    """Describe a run: model, prompts, tokens, analyses done and refused, bytes, date."""
    path = Path(key.path)
    row: dict[str, Any] = {"run": path.name}
    try:
        run = run_folder.open(path)
        capture = run.capture
        files = sorted((path / run_folder.RESULTS).glob("[!.]*.safetensors"))
        attrs = {file.stem: dataset_file.load(file, mapped=True).attrs for file in files}
    except HeadscopeError as refusal:
        return {**row, "model": f"cannot be read: {refusal}"}
    refused = {
        name: str(result["skipped"]) for name, result in attrs.items() if "skipped" in result
    }
    heads = f"{capture.sizes['layer']} × {capture.sizes['head']}"
    return {
        **row,
        "model": str(run.manifest["model"]),
        "layers × heads": heads,
        "prompts": int(run.manifest["n_prompts"]),
        "tokens": int(capture["length"].sum()),
        "analyses": len(attrs) - len(refused),
        "refused": refused,
        "size": format_bytes(
            sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        ),
        "created": str(run.manifest["created"])[:16].replace("T", " "),
    }


def draw(runs: dict[str, Path]) -> None:
    """Draw the runs as a table, the latest first; a click picks one."""
    rows = [card(cache.run_key(path)) for path in runs.values() if path.exists()]
    rows.sort(key=lambda row: str(row.get("created", "")), reverse=True)
    names = [row["run"] for row in rows]
    st.dataframe(
        [{**row, "refused": len(row.get("refused", ()))} for row in rows],
        key=TABLE, hide_index=True, selection_mode="single-row",
        on_select=lambda: _pick(names), alt="The runs of this folder, the latest first.",
        column_config={
            "refused": st.column_config.NumberColumn(help="Analyses that do not suit its model."),
            "created": st.column_config.TextColumn("created (UTC)"),
        },
    )  # fmt: skip


def _pick(names: list[str]) -> None:
    if name := state.picked_row(TABLE, names):
        st.session_state["run"] = name
