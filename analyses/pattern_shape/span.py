"""Effective span: how far back a head attends, and whether that grows with the text.

The span of a query is the shortest distance back that holds a share of its attention (90 %). Its
growth is the slope of log span over log n, n the tokens so far, over octaves of n: 0 for a head of
fixed span, 1 for an elastic one whose span is a share of the text. In causal order a query does not
know how long the text goes on, so one capture holds every length up to its own; a bidirectional
model is captured again on prompts cut short. With the slope come the two numbers of MoA's rule,
span = α + β n. A head with its weight on the first token is elastic here: that token recedes
(`sinks` names such heads). So each number is also computed without the first token: the span of the
weights renormalised over the other keys. Where the first token has 25 % more of all mass than in
even rows, these come first and tell fixed from elastic. The causal number: what the loss becomes
when heads of fixed span see nothing beyond it (but the first token, where that is left out of the
span), and when as many elastic heads are cut as short.

Sources: MoA: Mixture of Sparse Attention (elastic rules of span and length); MSWA.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens
from headscope.analyses._measurements import without_first
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, Results, label, marked, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.length_trend import (
    Array,
    by_octave,
    length_note,
    mean,
    octaves,
    per_query,
    slope,
    so_far,
)
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes import capture as capture_prompts
from headscope.probes.interventions import Window
from headscope.probes.models.model import Model

NEEDS = ("effective_span", "first_mass", "span_without_first")
QUICK = {"causal_prompts": 2}
SUPPORTS = {"encoder", "hybrid"}

SOURCE = "MoA: Mixture of Sparse Attention; MSWA"
CONDITIONS = ("intact", "fixed heads cut to their span", "elastic heads cut as short")
Heads = dict[str, list[tuple[int, int]]]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    shortest: Annotated[int, AtLeast(1)] = 4,
    boundary: Annotated[float, Between(0, 1)] = 0.5,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by its span and by how the span grows with the text.

    Parameters
    ----------
    capture
        Capture of the prompts with ``effective_span``, ``first_mass`` and ``span_without_first``;
        its ``share`` is stated with the result.
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

    Returns
    -------
    Dataset with ``span`` (layer, head; tokens, in the last octave), ``span_share`` (layer, head;
    share of the text so far), ``span_by_length`` (layer, head, length), ``growth`` (layer, head;
    slope of log span over log tokens), ``elastic_rate`` (layer, head; β, tokens a token) and
    ``offset`` (layer, head; α, tokens), each of them ``_without_first`` token, too, and
    ``span_loss`` (condition; nats a token, the causal number, where there are fixed and elastic
    heads), with 95 % intervals over prompts.
    """
    require(capture, NEEDS, "span", ("self",))

    share = float(capture.attrs.get("share", 0.9))
    names, counts, whole, rest = _measured(capture, model, shortest, share)
    if len(names) < 2:
        raise NotApplicable(
            f"prompts: the longest has {int(capture['length'].max())} tokens, which is less than "
            f"two octaves from {shortest}; give longer prompts or a smaller shortest"
        )
    convention = (
        f"shortest distance with {percent(share)} of the mass; octaves of the tokens so far, from "
        f"{shortest}; prompts of {length_note(capture)}"
    )
    results = Results(capture, seed=seed, convention=convention, source=SOURCE)
    variants = {
        "": (whole, "", ""),
        without_first.SUFFIX: (rest, without_first.TITLE, without_first.RULE),
    }
    first_dominates = without_first.first_dominates(capture)
    for end in sorted(variants, reverse=first_dominates):
        _add(results, end, counts, *variants[end])
    leading = without_first.SUFFIX if first_dominates else ""
    kinds = _kinds(results, f"growth{leading}", boundary)
    note = (
        f"{without_first.dominance_note(capture)}{len(kinds['fixed'])} heads of fixed span and "
        f"{len(kinds['elastic'])} elastic ones "
        f"(slope below or above {boundary:g} with its interval)."
    )
    coords: dict[str, Any] = {"length": names}
    verdict = None
    causal: dict[str, Any] = {}
    if not predicts(capture):
        note += " Not causal, so no loss is measured."
    elif causal_prompts and kinds["fixed"] and kinds["elastic"]:
        ids = tokens(capture)[:causal_prompts]
        verdict, causal = _cut(results, model, ids, kinds, leading)
        coords["condition"] = list(CONDITIONS)
    else:
        note += " The causal check needs heads of both kinds and causal_prompts above 0."
    return results.dataset(
        coords,
        verdict,
        note=note,
        heads_by_type={kind: [label(head) for head in heads] for kind, heads in kinds.items()},
        causal=causal,
    )


def _measured(
    capture: xr.Dataset, model: Model, shortest: int, share: float
) -> tuple[list[str], Array, Array, Array]:
    """Return names of the lengths, tokens so far (prompt, layer, bin), spans (…, head, bin) twice.

    The second spans are those without the first token.
    """
    if predicts(capture):
        lengths = so_far(capture)
        bins = octaves(lengths, shortest)
        (counts, full), (_, without_sink) = (
            by_octave(spans, lengths, bins) for spans in _spans(capture)
        )
        return [f"{low} to {high - 1} tokens" for low, high in bins], counts, full, without_sink
    ids = tokens(capture)
    sizes = [min(map(len, ids))]
    while sizes[0] // 2 >= shortest:
        sizes.insert(0, sizes[0] // 2)
    parts = [
        _spans(capture_prompts(model, [prompt[:size] for prompt in ids], stats=NEEDS, share=share))
        for size in sizes
    ]
    shape = (len(ids), capture.sizes["layer"], len(sizes))
    counts = np.broadcast_to(np.array(sizes, dtype=np.float64), shape)
    full, without_sink = (
        np.stack([mean(spans) for spans in by_size], axis=-1)
        for by_size in zip(*parts, strict=True)
    )
    return [f"text of {size} tokens" for size in sizes], counts, full, without_sink


def _spans(capture: xr.Dataset) -> tuple[Array, Array]:
    """Return the spans of all rows, and of those that leave other keys something."""
    rest = per_query(capture, "span_without_first")
    measured = ~np.isnan(without_first.mass(capture))
    return per_query(capture, "effective_span"), np.where(measured, rest, np.nan)


def _add(results: Results, end: str, counts: Array, spans: Array, title: str, rule: str) -> None:
    """Add the spans and their growth over the tokens so far, under names with this end."""
    lengths = np.broadcast_to(counts[:, :, None], spans.shape)
    growth, rate = slope(np.log(lengths), np.log(spans)), slope(lengths, spans)
    longest = _last(spans)
    # The offset is that of the line through the same lengths.
    offset = mean(spans) - rate * mean(np.where(np.isnan(spans), np.nan, lengths))
    results.add_means(
        (f"span{end}", GRID, longest, f"Effective span{title}", ("tokens", "sequential", 0)),
        (f"span_share{end}", GRID, longest / _last(lengths),
         f"Effective span against the text so far{title}", ("share of text", "sequential", 0)),
        (f"growth{end}", GRID, growth, f"Growth of the span with length{title}",
         ("slope", "diverging")),
        (f"elastic_rate{end}", GRID, rate, f"Elastic rate β of the span{title}",
         ("tokens a token", "diverging")),
        (f"offset{end}", GRID, offset, f"Span α without any length{title}",
         ("tokens", "diverging")),
        (f"span_by_length{end}", (*GRID, "length"), spans,
         f"Effective span by tokens so far{title}", ("tokens", "sequential", 0)),
        convention=f"{results.about['convention']}{rule}",
    )  # fmt: skip


def _last(values: Array) -> Array:
    """Return the value of the last known bin (…)."""
    measured = ~np.isnan(values)
    last = measured.shape[-1] - 1 - measured[..., ::-1].argmax(-1)
    return np.take_along_axis(values, last[..., None], axis=-1)[..., 0]


def _kinds(results: Results, growth: str, boundary: float) -> Heads:
    lower, upper = (results[f"{growth}_{end}"].values for end in ("lower", "upper"))
    return {"fixed": marked(upper < boundary), "elastic": marked(lower > boundary)}


def _cut(
    results: Results, model: Model, ids: list[list[int]], kinds: Heads, end: str
) -> tuple[Verdict, dict[str, Any]]:
    """Add the loss with heads of each kind cut to the spans of the fixed ones.

    Where spans are those without the first token, it stays in sight.
    """
    first = 1 if end else 0
    count = min(len(kinds["fixed"]), len(kinds["elastic"]))
    order, spans = np.random.default_rng(results.seed), results[f"span{end}"].values
    chosen = {
        kind: [heads[index] for index in sorted(order.permutation(len(heads))[:count])]
        for kind, heads in kinds.items()
    }
    windows = [int(np.ceil(spans[head])) for head in chosen["fixed"]]
    cut = [
        [
            Window(heads=(head,), recent=size, first=first)
            for head, size in zip(heads, windows, strict=True)
        ]
        for heads in chosen.values()
    ]
    loss = contrast(model, ids, [(), *cut])
    costs = loss.mean(0)
    results.add_mean(
        "span_loss", ("condition",), loss, "Loss with heads cut to a span", "nats", "sequential",
        0, evidence="causal",
        convention=f"loss a token on {len(loss)} prompts; window of ⌈span⌉ keys and {first} first "
        f"keys on {count} heads of each kind",
    )  # fmt: skip
    text = (
        f"of a loss of {amount(costs[0])} nats, cutting {count} fixed heads to their span changes "
        f"{amount(costs[1] - costs[0], '+')}, cutting {count} elastic heads as short "
        f"{amount(costs[2] - costs[0], '+')}"
    )
    verdict = causal_verdict(loss[:, 2] - loss[:, 1], text)
    names = {kind: [label(head) for head in heads] for kind, heads in chosen.items()}
    return verdict, {"heads": names, "windows": windows, "note": verdict.text}
