"""Effective span: how far back a head looks, and whether that grows with the text.

The span of a query is the shortest distance back that holds a share of its attention (90 %). Its
growth is the slope of log span over log n, n the tokens so far, over octaves of n: 0 for a head of
fixed span, 1 for an elastic one whose span is a share of the text. In causal order a query does not
know how long the text goes on, so one capture holds every length up to its own; a bidirectional
model is captured again on prompts cut short. Beside the slope stand the two numbers of MoA's rule,
span = α + β n. A head that rests on the first token is elastic here: that token recedes (`sinks`
names such heads). The causal number: what the loss becomes when heads of fixed span see nothing
beyond it, and when as many elastic heads are cut as short.

Sources: MoA: Mixture of Sparse Attention (elastic rules of span and length); MSWA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens, verdict
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, label, require
from headscope.analyses._stats.length_trend import (
    by_octave,
    mean,
    octaves,
    per_query,
    slope,
    so_far,
    stated,
)
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.interventions import Window
    from headscope.probes.models.model import Model

NEEDS = ("effective_span",)

SOURCE = "MoA: Mixture of Sparse Attention; MSWA"
CONDITIONS = ("intact", "fixed heads cut to their span", "elastic heads cut as short")
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    shortest: int = 4,
    boundary: float = 0.5,
    causal_prompts: int = 6,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Score every head by its span and by how the span grows with the text.

    Parameters
    ----------
    capture
        Capture of the prompts with ``effective_span``; its ``share`` is stated with the result.
    model
        Model that was captured: its heads are cut short for the causal check, and a bidirectional
        one is captured at shorter lengths.
    shortest
        Tokens so far in the first octave; earlier queries are left out.
    boundary
        Slope that tells fixed from elastic: the whole interval must lie on one side of it.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) prompts of the causal check.

    Returns
    -------
    Dataset with ``span`` (layer, head; tokens, in the last octave), ``span_share`` (layer, head;
    share of the text so far), ``span_by_length`` (layer, head, length), ``growth`` (layer, head;
    slope of log span over log tokens), ``elastic_rate`` (layer, head; β, tokens a token),
    ``offset`` (layer, head; α, tokens) and ``span_loss`` (condition; nats a token, the causal
    number, where there are fixed and elastic heads), each with 95 % intervals over prompts.

    Raises
    ------
    NotApplicable
        When the capture lacks ``effective_span``, no prompt spans two octaves, or an option is out
        of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(40)), list(range(2, 42))]
    >>> execute("span", model, given, options={"causal_prompts": 0})["growth"].dims
    ('layer', 'head')
    """
    options.at_least("shortest", shortest, 1)
    options.between("boundary", boundary, 0.0, 1.0)
    options.at_least("causal_prompts", causal_prompts, 0)
    require(capture, NEEDS, "span")
    options.one_text(capture.attrs.get("attention", "self"), "span")

    share = float(capture.attrs.get("share", 0.9))
    names, counts, spans = _measured(capture, model, shortest, share)
    if len(names) < 2:
        raise NotApplicable(
            f"prompts: the longest has {int(capture['length'].max())} tokens, which is less than "
            f"two octaves from {shortest}; give longer prompts or a smaller shortest"
        )
    growth = slope(np.log(counts)[:, :, None], np.log(spans))
    rate = slope(counts[:, :, None], spans)
    offset = mean(spans) - rate * mean(np.broadcast_to(counts[:, :, None], spans.shape))
    longest = _last(spans)
    convention = (
        f"shortest distance with {share:.0%} of the mass; octaves of the tokens so far, from "
        f"{shortest}; prompts of {stated(capture)}"
    )
    texts: dict[str, tuple[Array, str, str, str, float | None, float | None]] = {
        "span": (longest, "Effective span", "tokens", "sequential", 0, None),
        "span_share": (
            longest / _last(np.broadcast_to(counts[:, :, None], spans.shape)),
            "Effective span against the text so far", "share of text", "sequential", 0, None,
        ),
        "growth": (growth, "Growth of the span with length", "slope", "diverging", None, None),
        "elastic_rate": (rate, "Elastic rate β of the span", "tokens a token", "diverging", None,
                         None),
        "offset": (offset, "Span α without any length", "tokens", "diverging", None, None),
    }  # fmt: skip
    variables: dict[str, xr.Variable] = {}
    for name, (values, title, units, scale, low, high) in texts.items():
        variables |= averaged(
            name, ("layer", "head"), values, title, units, scale, low, high, seed=seed,
            convention=convention, source=SOURCE,
        )  # fmt: skip
    variables |= averaged(
        "span_by_length", ("layer", "head", "length"), spans, "Effective span by tokens so far",
        "tokens", "sequential", 0, seed=seed, convention=convention, source=SOURCE,
    )  # fmt: skip

    kinds = _kinds(variables, boundary)
    note = (
        f"{len(kinds['fixed'])} heads of fixed span and {len(kinds['elastic'])} elastic ones "
        f"(slope below or above {boundary:g} with its interval). "
    )
    coords: dict[str, Any] = {"length": names}
    record: dict[str, Any] = {}
    if not predicts(capture):
        note += "Not causal, so no loss stands beside it."
    elif causal_prompts and kinds["fixed"] and kinds["elastic"]:
        found, record = _cut(
            capture, model, kinds, variables["span"].values, causal_prompts, seed, progress
        )
        coords["condition"] = list(CONDITIONS)
        note += record["note"]
        variables |= found
    else:
        note += "The causal check needs heads of both kinds and causal_prompts above 0."
    return dataset(
        capture,
        variables,
        coords,
        convention=convention,
        heads_by_type={kind: [label(head) for head in found] for kind, found in kinds.items()},
        causal=record,
        note=note,
    )


def _measured(
    capture: xr.Dataset, model: Model, shortest: int, share: float
) -> tuple[list[str], Array, Array]:
    """Return names of the lengths, tokens so far (prompt, layer, bin), spans (…, head, bin)."""
    if predicts(capture):
        seen = so_far(capture)
        bins = octaves(seen, shortest)
        counts, spans = by_octave(per_query(capture, "effective_span"), seen, bins)
        return [f"{low} to {high - 1} tokens" for low, high in bins], counts, spans
    from headscope.probes import capture as capture_prompts

    ids = tokens(capture)
    sizes = [min(map(len, ids))]
    while sizes[0] // 2 >= shortest:
        sizes.insert(0, sizes[0] // 2)
    parts = [
        capture_prompts(model, [one[:size] for one in ids], stats=NEEDS, share=share)
        for size in sizes
    ]
    shape = (len(ids), capture.sizes["layer"], len(sizes))
    counts = np.broadcast_to(np.array(sizes, dtype=np.float64), shape)
    spans = np.stack([mean(per_query(part, NEEDS[0])) for part in parts], axis=-1)
    return [f"text of {size} tokens" for size in sizes], counts, spans


def _last(values: Array) -> Array:
    """Return the value of the last known bin (…)."""
    known = ~np.isnan(values)
    place = known.shape[-1] - 1 - known[..., ::-1].argmax(-1)
    return np.take_along_axis(values, place[..., None], axis=-1)[..., 0]


def _kinds(variables: dict[str, xr.Variable], boundary: float) -> dict[str, list[tuple[int, int]]]:
    lower, upper = variables["growth_lower"].values, variables["growth_upper"].values
    chosen = {"fixed": upper < boundary, "elastic": lower > boundary}
    return {kind: [(int(a), int(b)) for a, b in np.argwhere(at)] for kind, at in chosen.items()}


def _cut(
    capture: xr.Dataset,
    model: Model,
    kinds: dict[str, list[tuple[int, int]]],
    spans: Array,
    prompts: int,
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, xr.Variable], dict[str, Any]]:
    """Measure the loss with heads of each kind cut to the spans of the fixed ones."""
    count = min(len(kinds["fixed"]), len(kinds["elastic"]))
    order = np.random.default_rng(seed)
    fixed, elastic = (
        [heads[index] for index in sorted(order.permutation(len(heads))[:count])]
        for heads in (kinds["fixed"], kinds["elastic"])
    )
    windows = [int(np.ceil(spans[head])) for head in fixed]
    edits: dict[str, tuple[Window, ...]] = dict(
        zip(CONDITIONS, ((), _windows(fixed, windows), _windows(elastic, windows)), strict=True)
    )
    loss = contrast(model, tokens(capture)[:prompts], edits, progress)
    costs = loss.mean(0)
    told = (
        f"loss {costs[0]:.3f}, with {count} fixed heads cut to their span {costs[1]:.3f}, "
        f"with {count} elastic heads cut as short {costs[2]:.3f} nats."
    )
    convention = (
        f"loss a token on {len(loss)} prompts; window of ⌈span⌉ keys and no first keys on {count} "
        "heads of each kind"
    )
    names = {"fixed": [label(head) for head in fixed], "elastic": [label(head) for head in elastic]}
    variables = averaged(
        "span_loss", ("condition",), loss, "Loss with heads cut to a span", "nats", "sequential",
        0, seed=seed, convention=convention, source=SOURCE, evidence="causal",
    )  # fmt: skip
    return variables, {
        "heads": names,
        "windows": windows,
        "note": f"{verdict(loss[:, 1], loss[:, 2], seed)}: {told}",
    }


def _windows(heads: list[tuple[int, int]], sizes: list[int]) -> tuple[Window, ...]:
    from headscope.probes.interventions import Window

    return tuple(
        Window(heads=(head,), recent=size, first=0) for head, size in zip(heads, sizes, strict=True)
    )
