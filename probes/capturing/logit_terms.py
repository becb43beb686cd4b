"""Take one attention logit apart: the product of query and key, channel by channel."""

from __future__ import annotations

import numpy as np
import xarray as xr

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.capturing.attention_pattern import KEPT, pick, refuse_unkept, visible_keys

TOLERANCE = 2e-3
"""How far the weights of a row may lie from 1 before what makes them is called unknown."""


def logit_terms(
    capture: xr.Dataset, layer: int, head: int, query: int, key: int, prompt: int = 0
) -> xr.Dataset:
    """Split the logit of one query and one key into a term for each channel of the head.

    With q and k after their rotation (of grouped heads, the shared key) and the layer's scale,
    Σ_i q_i·k_i·scale is the score; soft cap and position bias make it the logit, and
    exp(logit − lse) is the weight that `pattern` returns.

    Parameters
    ----------
    capture
        A capture with ``keep=("q", "k")``.
    layer, head
        The head.
    query, key
        Positions in the prompt.
    prompt
        Row of the prompt.

    Returns
    -------
    ``q``, ``k`` and ``term`` (channel), and the numbers ``score`` (the sum of the terms),
    ``capped``, ``bias``, ``logit``, ``lse`` and ``weight``, which is 0 where the query does not see
    the key.

    Raises
    ------
    HeadscopeError
        Where q and k are not kept, weights were edited, there is no such position, or the row's
        weights do not add up, so that the attention adds terms that are not known.

    Examples
    --------
    >>> from headscope.probes import capture, load_model
    >>> kept = capture(load_model("headscope/bundled"), [[0, 5, 6, 5]], stats=(), keep=("q", "k"))
    >>> terms = logit_terms(kept, layer=0, head=0, query=3, key=1)
    >>> bool(np.isclose(terms["term"].sum(), terms["logit"]))
    True
    """
    refuse_unkept(capture)
    read = pick(capture, layer, head, prompt)
    crossed = "key_length" in capture.coords
    lengths = {
        "query": int(read("length")),
        "key": int(read("key_length" if crossed else "length")),
    }
    for name, at in (("query", query), ("key", key)):
        if not 0 <= at < lengths[name]:
            raise InvalidInput(f"{name}: no position {at}; there are 0 to {lengths[name] - 1}")
    row, columns = np.array([query]), np.arange(lengths["key"])
    q, keys, lse = (np.asarray(read(name), dtype=np.float64) for name in KEPT)
    scale, softcap = float(read("logit_scale")), float(read("softcap"))
    scores = keys[columns] @ q[query] * scale
    capped = scores if np.isnan(softcap) else softcap * np.tanh(scores / softcap)
    bias = np.zeros(len(columns))
    if "position_bias" in capture.coords:
        bias += read("position_bias")[columns - query + capture.sizes["relative"] // 2]
    if "alibi_slope" in capture.coords:
        bias -= float(read("alibi_slope")) * np.abs(columns - query)
    visible = visible_keys(read, row, columns)[0]
    logits = capped + bias
    weights = np.exp(np.where(visible, logits - lse[query], -np.inf))
    sink = float(read("sink_logit")) if "sink_logit" in capture.coords else float("-inf")
    if abs(weights.sum() + np.exp(sink - lse[query]) - 1) > TOLERANCE:
        raise NotApplicable(
            f"attention: the weights of query {query} of L{layer}H{head} add up to "
            f"{weights.sum():.4g} by its products of queries and keys, so this attention adds "
            "terms to the logits that are not known, and a sum of channels would not be its logit"
        )
    terms = q[query] * keys[key] * scale
    about = {"units": "logits", "scale": "diverging"}
    softcapped = "none" if np.isnan(softcap) else f"{softcap:g} · tanh(score / {softcap:g})"
    channels = {
        "q": (q[query], "Query after its rotation", "activation"),
        "k": (keys[key], "Key after its rotation", "activation"),
        "term": (terms, "q_i · k_i · scale", "logits"),
    }
    numbers = {
        "score": (terms.sum(), "Sum of the terms"),
        "capped": (capped[key], f"After the soft cap ({softcapped})"),
        "bias": (bias[key], "Position bias or ALiBi"),
        "logit": (logits[key], "Logit"),
        "lse": (lse[query], "Log of the normaliser of the row"),
    }
    return xr.Dataset(
        {
            **{
                name: ("channel", values, {"long_name": title, **about, "units": units})
                for name, (values, title, units) in channels.items()
            },
            **{
                name: ((), float(value), {"long_name": title, **about})
                for name, (value, title) in numbers.items()
            },
            "weight": (
                (), float(weights[key]), {"long_name": "Attention weight", "units": "probability"},
            ),
        },
        attrs={
            "layer": layer, "head": head, "query": query, "key": key, "scale": scale,
            "softcap": softcap, "seen": bool(visible[key]),
        },
    )  # fmt: skip
