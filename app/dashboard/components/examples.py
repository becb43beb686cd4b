"""Max-activating examples of a head: where its statistic is largest in the run's prompts."""

import streamlit as st
import xarray as xr

from headscope import viz
from headscope.app.dashboard import cache, prompt_examples, state
from headscope.app.dashboard.components.browser_view import mount
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.dashboard.prompt_examples import Example, Statistic
from headscope.kernels.errors import HeadscopeError
from headscope.viz.component.row_list import Row, row_list

# Tokens that are shown before and after the marked one.
AROUND = 10


def draw(key: cache.RunKey, layer: int, head: int) -> None:
    """Draw the ten largest positions and five deciles; a click opens the prompt at the token."""
    capture = cache.run(key)[1]
    try:
        statistics = prompt_examples.statistics(capture)
    except HeadscopeError as refusal:
        error(refusal)
        return
    if not statistics:
        st.info("This run's capture keeps no number for every position; capture it again.")
        return
    state.take("stat", list(statistics))
    name = st.selectbox(
        "Statistic of every position", list(statistics), key="stat", persist_state="session",
        format_func=lambda name: statistics[name].title,
    )  # fmt: skip
    if prompt_examples.ELSEWHERE not in statistics:
        st.caption(
            "This run's capture lacks max_weight or first_mass, so positions cannot be ranked by "
            "their attention away from the first token; a new capture keeps both."
        )
    if name == prompt_examples.ELSEWHERE and not prompt_examples.has_second_largest(capture):
        count, positions = prompt_examples.unknown(capture, layer, head)
        if count:
            st.caption(
                f"{count} of {positions} positions are left out: their largest weight is on the "
                "first token, and this run's capture lacks topk with two keys or more, which has "
                "the weight after it. A new capture keeps it."
            )
    statistic = statistics[name]
    top, deciles = prompt_examples.examples(statistic.read(capture, layer, head))
    if not top:
        st.info("This statistic has no value for this head.")
        return
    largest = max(abs(example.value) for example in [*top, *deciles]) or 1.0
    groups = {
        "Largest": [_row(capture, example, statistic, largest) for example in top],
        "Deciles of all positions": [
            _row(capture, example, statistic, largest, f"{share:.0%} · ")
            for share, example in zip(prompt_examples.DECILES, deciles, strict=True)
        ],
    }
    mount(row_list(f"Examples of L{layer}H{head}", groups), "examples", pick=_open)
    st.caption(
        f"{plain(statistic.title)}, {plain(statistic.units)}; the marked token is the position. "
        f"All {capture.sizes['prompt']} prompts of the run, without their first token, which sees "
        "itself alone. A click opens the prompt with the token locked."
    )


def _row(
    capture: xr.Dataset, example: Example, statistic: Statistic, largest: float, before: str = ""
) -> Row:
    side = "key" if "key_token" in capture.coords and _reads_keys(capture, statistic) else "query"
    tokens = capture["key_token" if side == "key" else "token"].values[example.prompt]
    length = int(capture["key_length" if side == "key" else "length"][example.prompt])
    start, stop = max(0, example.position - AROUND), min(length, example.position + AROUND + 1)
    return Row(
        [example.prompt, example.position], f"{before}{viz.amount(example.value)}",
        tail=f"prompt {example.prompt}, token {example.position}",
        share=abs(example.value) / largest,
        words=(*(["…"] if start else []), *tokens[start:stop].tolist(),
               *(["…"] if stop < length else [])),
        at=example.position - start + bool(start),
    )  # fmt: skip


def _reads_keys(capture: xr.Dataset, statistic: Statistic) -> bool:
    return statistic.variable in capture and "key" in capture[statistic.variable].dims


def _open(at: list[int]) -> None:
    """Show a prompt of the run, with a token locked."""
    st.session_state["prompt"], st.session_state["text"] = int(at[0]), ""
    st.session_state["tab"] = "Attention"
    st.query_params["token"] = str(int(at[1]))
