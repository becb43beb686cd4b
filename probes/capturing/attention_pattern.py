"""Recompute a window of one head's attention weights, exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.kernels.errors import InvalidInput, NotApplicable, ResourceLimit
from headscope.probes.attention.layer_attention import run_until_layer
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import Prompts

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit

CELLS = 2048 * 2048
KEPT = ("q", "k", "lse")


def pattern(
    capture: xr.Dataset,
    layer: int,
    head: int,
    prompt: int = 0,
    queries: slice | None = None,
    keys: slice | None = None,
    *,
    model: Model | None = None,
    edits: Sequence[Edit] = (),
) -> xr.DataArray:
    """Recompute the attention weights of one head, exactly, in a window of any prompt.

    From queries, keys and lse where the capture keeps them; else the model runs the prompt again,
    up to the layer, with memory linear in the prompt.

    Parameters
    ----------
    capture
        A capture with ``keep=("q", "k")`` and the statistic ``lse``, or any with ``model``.
    layer, head
        The head.
    prompt
        Row of the prompt.
    queries, keys
        Window of positions, at most 2048 × 2048; the whole prompt without them. In cross-attention
        queries are of the target and keys of the source.
    model
        The model that was captured, where the capture does not keep what is needed or its weights
        were edited.
    edits
        The edits that the capture was made with, for the model to make them again.

    Returns
    -------
    The weights, dims query, key, between 0 and 1; 0 where a query cannot see a key. Coords:
    query and key positions, token (query) and key_token (key).

    Raises
    ------
    HeadscopeError
        Where q, k or lse are missing or weights were edited and there is no model, the model or
        the edits are not those of the capture, the head or prompt does not exist, the layer has
        no attention map, the window is empty or larger than 2048 × 2048.

    Examples
    --------
    >>> from headscope.probes import capture, load_model
    >>> model = load_model("headscope/bundled")
    >>> captured = capture(model, [[0, 5, 6, 5]], stats=("lse",), keep=("q", "k"))
    >>> pattern(captured, layer=0, head=0).sum("key").round(4).values.tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> bare = capture(model, [[0, 5, 6, 5]], stats=("entropy",))
    >>> pattern(bare, layer=0, head=0, keys=slice(1), model=model).values[0, 0]
    np.float32(1.0)
    """
    if model is not None:
        _refuse_another(capture, model, edits)
    elif edits:
        raise InvalidInput(
            "model: edits are made again by the model; give pattern(..., model=model)"
        )
    else:
        refuse_unkept(capture)
    read = pick(capture, layer, head, prompt)
    length = int(read("length"))
    crossed = "key_length" in capture.coords
    rows = _positions("queries", queries, length)
    columns = _positions("keys", keys, int(read("key_length")) if crossed else length)
    if len(rows) * len(columns) > CELLS:
        raise ResourceLimit(
            f"queries, keys: {len(rows)} × {len(columns)} weights; narrow them to 2048 × 2048"
        )
    complete = all(name in capture for name in KEPT)
    if model is None or (complete and not capture.attrs.get("reweighted")):
        weights = _from_kept(capture, read, rows, columns)
    else:
        weights = _from_model(model, edits, read, rows, columns)
    tokens = read("token")
    return xr.DataArray(
        weights,
        dims=("query", "key"),
        name="pattern",
        coords={
            "query": rows,
            "key": columns,
            "token": ("query", tokens[rows]),
            "key_token": ("key", (read("key_token") if crossed else tokens)[columns]),
        },
        attrs={
            "long_name": f"Attention of L{layer}H{head}",
            "units": "probability",
            "scale": "sequential",
            "low": 0.0,
            "high": 1.0,
            "attention": str(capture.attrs.get("attention", "self")),
            "layer": int(layer),
            "head": int(head),
            "prompt": int(prompt),
        },
    )


def refuse_unkept(capture: xr.Dataset) -> None:
    """Refuse a capture whose weights do not follow from what it keeps."""
    for name in KEPT:
        if name not in capture:
            raise InvalidInput(
                f"capture: no {name}; a pattern needs capture(..., stats=('lse', ...), "
                "keep=('q', 'k')), or pattern(..., model=model), which runs the prompt again"
            )
    if capture.attrs.get("reweighted"):
        raise NotApplicable(
            "edits: the weights of this capture were edited, and q, k and lse do not tell how; "
            "give pattern(..., model=model, edits=...) the same edits, or capture "
            "stats=('pattern',) with them"
        )


def _from_kept(capture: xr.Dataset, read: Callable[[str], Any], rows: Any, columns: Any) -> Any:
    """Compute weights from queries, keys and the normaliser of each row."""
    query, key = read("q")[rows].astype(np.float64), read("k")[columns].astype(np.float64)
    logits = query @ key.T * float(read("logit_scale"))
    softcap = float(read("softcap"))
    if not np.isnan(softcap):
        logits = softcap * np.tanh(logits / softcap)
    if "position_bias" in capture.coords:
        relative = columns[None, :] - rows[:, None] + capture.sizes["relative"] // 2
        logits += read("position_bias")[relative].astype(np.float64)
    if "alibi_slope" in capture.coords:
        logits -= float(read("alibi_slope")) * np.abs(rows[:, None] - columns[None, :])
    weights = np.exp(logits - read("lse")[rows].astype(np.float64)[:, None])
    return np.where(visible_keys(read, rows, columns), weights, 0.0).astype(np.float32)


def visible_keys(read: Callable[[str], Any], rows: Any, columns: Any) -> Any:
    """Return which keys each query of a layer sees, by its causal order and its window."""
    window = float(read("window"))
    visible = np.ones((len(rows), len(columns)), dtype=bool)
    if bool(read("causal")):
        visible &= columns[None, :] <= rows[:, None]
    if not np.isnan(window):
        visible &= columns[None, :] > rows[:, None] - window
        if not bool(read("causal")):
            visible &= columns[None, :] < rows[:, None] + window
    return visible


def _from_model(
    model: Model, edits: Sequence[Edit], read: Callable[[str], Any], rows: Any, columns: Any
) -> Any:
    """Run the model up to the layer, and cut the window from there."""
    ids = [int(token) for token in read("token_id")[: int(read("length"))]]
    attention = run_until_layer(model, ids, int(read("layer")), edits)
    weights = attention.weights(int(read("head")), np.sort(rows), np.sort(columns))
    # A slice may run backwards.
    return weights[np.ix_(rows.argsort().argsort(), columns.argsort().argsort())]


def _refuse_another(capture: xr.Dataset, model: Model, edits: Sequence[Edit]) -> None:
    """Refuse a model, prompts or edits that would not give what was captured."""
    if model.attention != "self":
        raise InvalidInput(
            f"model: windows of {model.attention} attention are cut from what a capture keeps; "
            "capture(..., stats=('lse', ...), keep=('q', 'k')), and leave model out"
        )
    properties = {"revision": model.revision, "dtype": str(model.dtype).removeprefix("torch.")}
    for name, value in properties.items():
        if capture.attrs.get(name) != value:
            recorded = capture.attrs.get(name, "none that it names")
            raise InvalidInput(
                f"model: {name} {value}, but this capture was made at {recorded}; load that model, "
                "or capture again"
            )
    described = json.dumps([edit.describe() for edit in edits]) if edits else ""
    if described != capture.attrs.get("edits", ""):
        recorded = capture.attrs.get("edits") or "none"
        raise InvalidInput(
            f"edits: this capture was made with {recorded[:200]}; give the same ones"
        )
    lengths = capture["length"].values
    if len(lengths) != capture.attrs.get("n_prompts"):
        return  # a selection of the prompts, to which no digest belongs
    rows = zip(capture["token_id"].values.tolist(), lengths.tolist(), strict=True)
    ids = tuple(tuple(row[:length]) for row, length in rows)
    if Prompts(ids).digest() != capture.attrs.get("prompts_sha256"):
        raise InvalidInput("capture: its token_id are not those it was made of; capture again")


def pick(capture: xr.Dataset, layer: int, head: int, prompt: int) -> Callable[[str], Any]:
    """Return a function that reads one variable for one head and prompt."""
    indexers = {"prompt": prompt}
    for name, value in (("layer", layer), ("head", head)):
        layers = capture[name].values
        if value not in layers:
            available = f"{int(layers.min())} to {int(layers.max())}"
            raise InvalidInput(f"{name}: no {value} in this capture; it has {available}")
        indexers[name] = int(np.flatnonzero(layers == value)[0])
    if not 0 <= prompt < capture.sizes["prompt"]:
        raise InvalidInput(
            f"prompt: no {prompt}; the capture has 0 to {capture.sizes['prompt'] - 1}"
        )
    if "attention_map" in capture.coords and not capture["attention_map"].values[indexers["layer"]]:
        attended = ", ".join(map(str, capture["layer"].values[capture["attention_map"].values]))
        raise InvalidInput(f"layer: {layer} has no attention map; layers with one are {attended}")
    if "kv_head" in capture.coords:
        group = int(capture["kv_group"].values[indexers["head"]])
        indexers["kv_head"] = int(np.flatnonzero(capture["kv_head"].values == group)[0])

    def read(name: str) -> Any:
        # Variables, not the whole Dataset: analyses ask for many heads, one row each.
        return capture.variables[name].isel(indexers, missing_dims="ignore").values

    return read


def _positions(field: str, window: slice | None, length: int) -> Any:
    positions = np.arange(length)[window if window is not None else slice(None)]
    if len(positions) == 0:
        raise InvalidInput(f"{field}: {window} holds no position; the prompt has {length} tokens")
    return positions
