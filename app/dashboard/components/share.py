"""This view again: its link, and a few lines of Python."""

from pathlib import Path

import streamlit as st

from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components.pattern_window import Window


def draw(
    path: Path, layer: int, head: int, window: Window | None, ids: cache.Tokens | None = None
) -> None:
    """Show the link of the view, and the Python that computes what it shows."""
    st.code(state.link(), language=None, wrap_lines=True)
    text, target = (st.session_state.get(name) or "" for name in ("text", "target"))
    typed = f"[Pair({text!r}, {target!r})]" if target.strip() else repr([text])
    prompts = typed if text.strip() else f"[opened.prompts()[{st.session_state['prompt']}]]"
    lines = [
        "from headscope.probes import Pair, capture, pattern",
        "from headscope.probes.storage import run_folder",
        "from headscope.app.pipeline import open_model",
        "",
        f"opened = run_folder.open({str(path)!r})",
    ]
    if window is None and isinstance(ids, tuple) and len(ids) > cache.WHOLE:
        stats = "stats=('pooled_max', 'pooled_mean', 'received', 'entropy')"
        tile = -(-len(ids) // 256)
        lines += [
            "from headscope import viz",
            f"cap = capture(open_model(opened), {prompts}, {stats}, tile={tile})",
            f"viz.long_view(cap.isel(prompt=0, layer={layer}, head={head}))",
        ]
    elif window is None:
        lines += [
            f"cap = capture(open_model(opened), {prompts}, stats=('lse',), keep=('q', 'k'))",
            f"pattern(cap, layer={layer}, head={head})",
        ]
    else:
        queries, keys = (f"slice({side.start}, {side.stop})" for side in window)
        lines += [
            "model = open_model(opened)",
            f"cap = capture(model, {prompts}, stats=('entropy',))",
            f"pattern(cap, {layer}, {head}, queries={queries}, keys={keys}, model=model)",
        ]
    st.code("\n".join(lines), language="python", wrap_lines=True)
