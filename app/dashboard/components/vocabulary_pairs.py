"""What a head's weights do with tokens alone: what they promote (OV), and look for (QK)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from headscope import viz
from headscope.app.dashboard import cache
from headscope.app.dashboard.components import job_tray
from headscope.app.dashboard.components.plain import error, plain
from headscope.app.dashboard.jobs import DONE, FAILED, QUEUE, Job, Report
from headscope.app.dashboard.visitor import visitor
from headscope.kernels.errors import HeadscopeError

KIND = "vocabulary"
# Of a token the others, of the vocabulary the pairs, and of a prompt the tokens that are shown.
OTHERS, PAIRS, TOKENS = 5, 20, 64
TITLES = {
    "ov": "OV: where the head attends to the token, it promotes",
    "qk": "QK: as a query, the token attends to",
}
CONVENTION = (
    "From the weights alone: each token enters the layer as it enters the first block, at the "
    "first position; OV through the output projection, the final norm and the unembedding, QK the "
    "scaled product of query and key at equal positions. Earlier layers add to both in a text. "
    "Elhage et al. 2021."
)


def draw(key: cache.RunKey, ids: cache.Tokens, layer: int, head: int) -> None:
    """Draw what the tokens in view promote and look for, and the top pairs of the vocabulary."""
    if not isinstance(ids, tuple):
        st.info("Tokens alone are read of models of one text.")
        return
    tokens = tuple(dict.fromkeys(ids))[:TOKENS]
    try:
        model = cache.model(key)
        pairs = cache.token_pairs(key, tokens, layer, head, OTHERS)
    except HeadscopeError as refusal:
        error(refusal)
        return
    names = dict(zip(tokens, model.to_str_tokens(tokens), strict=True))
    if len(tokens) == TOKENS:
        st.caption(f"The first {TOKENS} different tokens of the text.")
    table = pd.DataFrame({"token": [plain(viz.shown_token(names[token])) for token in tokens]})
    for name, title in TITLES.items():
        table[title] = [
            ", ".join(
                f"{plain(_token_text(model, other))} {viz.amount(logit)}" for other, logit in row
            )
            for row in (
                zip(pairs[name].others[at].tolist(), pairs[name].logits[at].tolist(), strict=True)
                for at in range(len(tokens))
            )
        ]
    with st.container(height=420):
        st.table(table, border="horizontal", hide_index=True)
    st.caption(CONVENTION)
    about = (key.path, layer, head)
    job = QUEUE.find(visitor(), (KIND, about))
    if job is not None and job.state == DONE:
        _show(model, job.result)
        return
    if job is not None and job.state == FAILED:
        error(job.error)
    running = job is not None and not job.ended
    if st.button(
        f"Top pairs of the whole vocabulary ({model.vocabulary:,} tokens)", key="vocabulary_run",
        disabled=running, icon=":material/play_arrow:",
    ):  # fmt: skip
        job_tray.submit(_job(key, layer, head))


def _job(key: cache.RunKey, layer: int, head: int) -> Job:
    """Return the job that goes through the whole vocabulary."""

    def do(report: Report) -> dict[str, list[tuple[int, int, float]]]:
        from headscope.analyses._measurements import token_pairs
        from headscope.app.pipeline import open_model
        from headscope.probes.storage import run_folder

        model = open_model(run_folder.open(key.path), load=cache.job_loader(report))
        tokens = range(model.vocabulary)
        report("reading the tokens", 0, 1)
        vectors = token_pairs.vectors(model, layer, head, tokens)

        def count(phase: str) -> Any:
            return lambda done, total: report(phase, done, total)

        promoted = token_pairs.promoted(
            model, layer, head, vectors, tokens, 1, count("OV: promoted tokens")
        )
        attended_keys = token_pairs.attended_keys(
            vectors, tokens, vectors, 1, count("QK: keys of queries")
        )
        return {"ov": promoted.largest(PAIRS), "qk": attended_keys.largest(PAIRS)}

    name = f"L{layer}H{head}"
    return Job(
        KIND, f"Vocabulary of {name} on {Path(key.path).name}", visitor(), do,
        about=(key.path, layer, head), message="the pairs are in the tab Vocabulary",
        opens=("heads", {"run": Path(key.path).name, "layer": layer, "head": head,
                         "tab": "Vocabulary"}, "See the pairs"),
    )  # fmt: skip


def _show(model: Any, largest: dict[str, list[tuple[int, int, float]]]) -> None:
    columns = st.columns(2)
    sides = {"ov": ("token", "promotes"), "qk": ("query", "key")}
    for column, (name, pairs) in zip(columns, largest.items(), strict=True):
        rows = {
            sides[name][0]: [_token_text(model, token) for token, _, _ in pairs],
            sides[name][1]: [_token_text(model, other) for _, other, _ in pairs],
            "logit": [viz.amount(logit) for _, _, logit in pairs],
        }
        column.markdown(f"**{name.upper()}: top pairs of the whole vocabulary**")
        column.dataframe(pd.DataFrame(rows), hide_index=True)


def _token_text(model: Any, token: int) -> str:
    return str(viz.shown_token(model.to_str_tokens([token])[0]))
