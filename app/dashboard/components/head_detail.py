"""One head: its attention on the tokens of a prompt."""

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import cache, state
from headscope.app.dashboard.components import pattern_window
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error
from headscope.kernels.errors import HeadscopeError
from headscope.probes.models.pair import Pair
from headscope.viz import patches


def choose_tokens(key: cache.RunKey, capture: xr.Dataset) -> cache.Tokens | None:
    """Ask for the prompt in view; None, with an error on the page, where it cannot be read."""
    try:
        return _tokens(key, capture)
    except HeadscopeError as refusal:
        error(refusal)
        return None


def draw_pattern(
    key: cache.RunKey, capture: xr.Dataset, ids: cache.Tokens, layer: int, head: int, name: str
) -> pattern_window.Window | None:
    """Draw a head's attention on the prompt in view.

    Returns the window that is drawn, None where the whole map is.
    """
    window = None
    try:
        if isinstance(ids, tuple) and len(ids) > cache.WHOLE:
            window = pattern_window.choose(key, capture, ids, (layer, head))
            if window is None:
                return None
            array = pattern_window.compute(key, ids, (layer, head), window)
        else:
            array = cache.weights(key, ids, layer, head)
    except HeadscopeError as refusal:
        error(refusal)
        return None
    image = "pixels" in capture.coords
    if not image:
        view = viz.token_view(array)
        count = len(view.data["queries"]) + len(view.data["keys"] or ())
        view.data["state"] = state.token_view(count)
        mount(view, "token_view", state=state.keep_token_view)
        return window
    tokens, seen = (array[name].values.tolist() for name in ("token", "key_token"))
    st.plotly_chart(
        viz.choose(array).figure(array),
        key="pattern_chart",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": name, "scale": 2}},
        alt=f"Attention weights of L{layer}H{head}: query tokens down, key tokens across.",
    )
    positions = [int(at) for at in array["query"].values]
    labels = {
        at: f"{at}: {viz.visible(token)}" for at, token in zip(positions, tokens, strict=True)
    }
    query = st.select_slider(
        "One query token: where it attends",
        positions,
        positions[0],
        format_func=labels.__getitem__,
        key=f"token_{positions[0]}_{len(positions)}",
    )
    row = array.sel(query=query, drop=True).assign_coords(token=("key", seen))
    row.attrs["long_name"] = f"Attention of L{layer}H{head} from {labels[query]}"
    shown = patches.lay(row)
    st.plotly_chart(viz.choose(shown).figure(shown), key="row_chart", config={"displaylogo": False})
    return None


def _tokens(key: cache.RunKey, capture: xr.Dataset) -> cache.Tokens:
    """Return the ids of the prompt in view: the user's own text or pair, or one of the run."""
    image = "pixels" in capture.coords
    # What a pair is captured with besides the target: the keys of cross-attention, or the source.
    side = next((name for name in ("key", "source") if f"{name}_length" in capture.coords), None)
    left, right = st.columns(2)
    with right:
        typed = None if image else _own_text(paired=side is not None)
    state.take("prompt", range(capture.sizes["prompt"]), decides=True)
    number = left.selectbox(
        "Prompt of the run", range(capture.sizes["prompt"]), key="prompt", persist_state="session",
        disabled=typed is not None,
    )  # fmt: skip
    left.caption(_start(capture, number))
    if typed is not None:
        return cache.read_text(key, typed)
    if image:
        cache.check_length(int(capture["length"][number]), cache.WHOLE)
        return int(number)
    limit = cache.LONGEST if side is None else cache.WHOLE
    ids = _ids(capture, "", number, limit)
    return ids if side is None else Pair(_ids(capture, f"{side}_", number, limit), ids)


def _own_text(*, paired: bool) -> str | Pair | None:
    """Ask for the user's own text, or for both of a pair; None while there is none."""
    state.take("text", decides=True)
    label = "Your own source" if paired else "Your own text"
    text = st.text_area(
        f"{label} (instead of a prompt of the run)", key="text", persist_state="session",
        placeholder="empty: the prompt of the run is shown", height=68,
    )  # fmt: skip
    if not paired:
        return text if text and text.strip() else None
    state.take("target")
    target = st.text_area(
        "Your own target", key="target", persist_state="session",
        placeholder="what the decoder reads; needed with a source of your own", height=68,
    )  # fmt: skip
    filled = all(part and part.strip() for part in (text, target))
    return Pair(text, target) if filled else None


def _ids(capture: xr.Dataset, prefix: str, at: int, limit: int) -> tuple[int, ...]:
    count = int(capture[f"{prefix}length"][at])
    cache.check_length(count, limit)
    return tuple(capture[f"{prefix}token_id"].values[at, :count].tolist())


def _start(capture: xr.Dataset, at: int) -> str:
    """Return the first words of a prompt; options of a bound widget stay short for the link."""
    if "pixels" in capture.coords:
        height, width = (capture.sizes[side] for side in ("height", "width"))
        return f"image of {height} × {width} pixels ({int(capture['length'][at])} tokens)"
    words = _words(capture["token"][at], int(capture["length"][at]), 1)
    if "key_token" not in capture.coords:
        return words
    return f"{_words(capture['key_token'][at], int(capture['key_length'][at]), 0)} → {words}"


def _words(tokens: xr.DataArray, length: int, start: int) -> str:
    words = " ".join(str(word).strip() for word in tokens.values[start : min(length, 16)])
    return f"{words}{' …' if length > 16 else ''} ({length} tokens)"
