"""Segments: how much every group of tokens attends to every other one.

The tokens of each prompt are grouped: pieces of the text, the two texts of an encoder, kinds of
tokens, patches of an image, the roles of a task, or labels of your own (documents, speakers,
modalities). The mass from segment to segment is the mean over the queries of one of the sum over
the keys of the other, summed up inside the kernel, so that any length has one. Long segments get
much from any head, so beside the mass stands its enrichment: the mass over the share of the keys a
query sees that lie in the segment, 1 for a head that spreads its attention evenly. The causal
number of a link is what changes for the queries of a segment when every head is kept from looking
from there at the other: the loss of their predictions, or, of a model that predicts no next token,
their last hidden states.

Sources: Understanding the Behaviors of BERT in Ranking (query and document); Wings; Unveiling
Visual Perception in Language Models; A-VL (modalities); Attention knockout (Geva et al. 2023).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import SHARE, Results, attending, named, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.length_trend import Array, mean
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.token_groups import _segment_mass
from headscope.analyses.token_groups._segmenting import WAYS, Segments, segment
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
SUPPORTS = {"encoder", "vision", "hybrid"}

SOURCE = "Understanding the Behaviors of BERT in Ranking; attention knockout (Geva et al. 2023)"
# Rank correlation from which the mass is said to tell what a link does.
LEAST_LINKS = 4
# How many heads of how many links are named.
NAMED, LINKS = 6, 8


def run(
    capture: xr.Dataset,
    model: Model,
    prompts: Any,
    *,
    by: Annotated[str, OneOf(WAYS)] = "auto",
    pieces: Annotated[int, AtLeast(1)] = 3,
    rare: Annotated[int, AtLeast(0)] = 1,
    labels: str = "",
    enriched: Annotated[float, AtLeast(0)] = 2.0,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the mass from segment to segment, its enrichment, and what cutting a link changes.

    Parameters
    ----------
    capture, model
        Capture of the prompts and its model, which reads them again with the segments as spans.
    prompts
        The prompts; a task brings its roles.
    by
        ``pieces`` (the first token, then equal pieces), ``parts`` (between special tokens),
        ``kinds`` (kinds of tokens; patches and class tokens of images), ``roles`` (of a task),
        ``labels`` (a file), or ``auto``: a file where one is given, else kinds for images, parts
        where special tokens part the texts, pieces otherwise.
    pieces
        Number of equal pieces.
    rare
        A word is rare that occurs at most this often in all prompts together.
    labels
        JSON file with a list for each prompt, of a name for each of its tokens; "" is no segment.
    enriched
        Enrichment from which a head is named for a link.
    causal_prompts
        Prompts whose links are cut, from the first on; 0 leaves that out.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``own_mass`` (layer, head; share of weight within the query's own segment, mean
    over the queries of any), ``segment_mass`` (layer, head, from, to; share of weight, 0 to 1),
    ``enrichment`` (layer, head, from, to; times the even share), ``mean_mass`` (one, other; mean
    over heads), ``mean_enrichment`` (one, other) and ``link_effect`` (one, other; the causal
    number; nats a token, or share of the hidden state), with 95 % intervals over prompts. From and
    one are the queries, to and other the keys. Missing where no query of the one sees a key of the
    other.
    """
    require(capture, NEEDS, "segments", ("self",))
    segments = segment(capture, model, prompts, by=by, pieces=pieces, rare=rare, labels=labels)
    inputs = _segment_mass.inputs(capture)
    names = list(segments.names)
    cut = inputs[:causal_prompts]
    mass, even, own_mass = _masses(capture, model, inputs, segments)
    effects = [_cut(capture, model, prompt, segments, number) for number, prompt in enumerate(cut)]
    enrichment = mass / even

    kinds_text = f"{segments.description}; {len(inputs)} prompt(s)"
    convention = (
        f"{segments.description}; mean over the queries of a segment; {len(inputs)} prompt(s)"
    )
    against_even = f"mass over the share of the visible keys; 1 is even; {convention}"
    links, pairs = ("layer", "head", "from", "to"), ("one", "other")
    times = ("× the even share", "sequential", 0)
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_means(
        ("own_mass", ("layer", "head"), own_mass, "Mass within the query's own segment", SHARE,
         f"mean over queries; {kinds_text}"),
        ("segment_mass", links, mass, "Mass from segment to segment", SHARE),
        ("enrichment", links, enrichment, "Enrichment from segment to segment", times,
         against_even),
        ("mean_mass", pairs, mean(mass, (1, 2)), "Mass from segment to segment, mean of heads",
         SHARE),
        ("mean_enrichment", pairs, mean(enrichment, (1, 2)),
         "Enrichment from segment to segment, mean of heads", times, against_even),
    )  # fmt: skip
    verdict = None
    if cut:
        effect = np.stack(effects)
        title, units, scale = _segment_mass.units(capture)
        by_prompt = mean(mass[: len(effect)], (1, 2))
        verdict = _verdict(by_prompt, effect, names, units)
        results.add_mean(
            "link_effect", pairs, effect, f"{title}: keys of a segment hidden from another",
            units, scale, None if scale == "diverging" else 0, evidence="causal",
            note=verdict.text, convention="all heads; read at the queries that no longer see; "
            f"{len(cut)} prompt(s); {segments.description}",
        )  # fmt: skip
    by_link = _heads(results["enrichment"].values, names, enriched)
    best = "; ".join(f"{link}: {', '.join(heads[:3])}" for link, heads in list(by_link.items())[:4])
    remark = "" if verdict else " No links were cut: causal_prompts is 0."
    return results.dataset(
        {"from": names, "to": names, "one": names, "other": names},
        heads_by_type=by_link,
        note=f"Segments: {segments.description}. Heads with most enrichment, "
        f"{best or 'none'}.{remark}",
        verdict=verdict,
    )


def _masses(
    capture: xr.Dataset, model: Model, inputs: list[Any], segments: Segments
) -> tuple[Array, Array, Array]:
    """Return mass and even share (prompt, layer, head, from, to), and the mass within."""
    masses, shares, within = [], [], []
    count = len(segments.names)
    for prompt, numbers in zip(inputs, segments.numbers, strict=True):
        rows = _segment_mass.members(numbers, count)
        even = _segment_mass.even(capture, numbers, count, rows)
        mass = _segment_mass.masses(model, prompt, numbers, count, rows)
        # What nobody can see has no share to compare with.
        masses.append(np.where(np.isnan(even), np.nan, mass))
        sizes = np.array([len(row) for row in rows]) / sum(map(len, rows))
        within.append((np.nan_to_num(np.einsum("lhss->lhs", mass)) * sizes).sum(-1))
        within[-1][~attending(capture)] = np.nan
        shares.append(np.broadcast_to(even, mass.shape))
    return np.stack(masses), np.stack(shares), np.stack(within)


def _cut(
    capture: xr.Dataset,
    model: Model,
    prompt: Any,
    segments: Segments,
    number: int,
) -> Array:
    """Hide each segment from each in turn and read what that does to the queries (from, to)."""
    count = len(segments.names)
    effects = np.full((count, count), np.nan)
    numbers = segments.numbers[number]
    rows = _segment_mass.members(numbers, count)
    visible = _segment_mass.even(capture, numbers, count, rows)[:, 0]
    answer = segments.answers[number] if segments.answers else None
    if answer is not None and (model.context is None or len(prompt) < model.context):
        # What is asked at the end has its answer, which the prompt itself does not hold.
        prompt = [*prompt, answer]
    hiding = _segment_mass.Hiding(capture, model, prompt)
    for source, target in np.ndindex(count, count):
        if not np.isnan(visible[:, source, target]).all():
            effect = hiding.effect(rows[target].tolist(), rows[source].tolist())
            effects[source, target] = _segment_mass.mean_of(effect, rows[source])
    return effects


def _verdict(mass: Array, effect: Array, names: list[str], units: str) -> Verdict:
    """Conclude whether the links with most mass are those whose loss changes most."""
    measured = ~np.isnan(mass) & ~np.isnan(effect)
    if not measured.any():
        return Verdict("too_few", "No link could be cut.")
    costs = mean(effect, 0)
    source, target = np.unravel_index(
        np.where(measured.any(0), costs, -np.inf).argmax(), costs.shape
    )
    dearest = (
        f"the dearest link is {names[source]} → {names[target]} "
        f"({amount(costs[source, target], '+')} {units})"
    )
    rho = np.array(
        [
            ranked(link_mass[cut], link_effect[cut]) if cut.sum() >= LEAST_LINKS else np.nan
            for link_mass, link_effect, cut in zip(mass, effect, measured, strict=True)
        ]
    )
    if np.isnan(rho).all():
        return Verdict("too_few", f"Too few links that differ to compare with the mass; {dearest}.")
    text = (
        "mass of the links and effect of cutting them rank alike with ρ = "
        f"{amount(mean(rho), '+')}, mean over prompts; {dearest}"
    )
    return causal_verdict(rho, text)


def _heads(enrichment: Array, names: list[str], least: float) -> dict[str, list[str]]:
    """List the heads with most enrichment of each link, the most enriched links first."""
    links = []
    for row, column in np.ndindex(len(names), len(names)):
        scores = np.nan_to_num(enrichment[:, :, row, column])
        heads = named(scores, scores >= least)[:NAMED]
        if heads:
            links.append((float(scores.max()), f"{names[row]} → {names[column]}", heads))
    links.sort(key=lambda link: -link[0])
    return {name: heads for _, name, heads in links[:LINKS]}
