"""Segments: how much every group of tokens looks at every other one.

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

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import attending, averaged, dataset, label, require
from headscope.analyses.token_groups._segment_mass import average

if TYPE_CHECKING:
    from headscope.analyses.token_groups._segmenting import Segments
    from headscope.probes.models.model import Model

NEEDS = ()

SOURCE = "Understanding the Behaviors of BERT in Ranking; attention knockout (Geva et al. 2023)"
# Rank correlation from which the mass is said to tell what a link does.
AGREES = 0.3
# How many heads of how many links are named.
NAMED, LINKS = 6, 8
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    prompts: Any,
    *,
    by: str = "auto",
    pieces: int = 3,
    rare: int = 1,
    labels: str = "",
    enriched: float = 2.0,
    causal_prompts: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measure the mass from segment to segment, its enrichment, and what cutting a link changes.

    Parameters
    ----------
    capture
        Capture of the prompts; what was captured is read again with the segments as spans.
    model
        Model that was captured.
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
    progress
        Called with (done, total) passes.

    Returns
    -------
    Dataset with ``own_mass`` (layer, head; share of weight within the query's own segment, mean
    over the queries of any), ``segment_mass`` (layer, head, from, to; share of weight, 0 to 1),
    ``enrichment`` (layer, head, from, to; times the even share), ``mean_mass`` (one, other; mean
    over heads), ``mean_enrichment`` (one, other) and ``link_effect`` (one, other; the causal
    number; nats a token, or share of the hidden state), with 95 % intervals over prompts. From and
    one are the queries, to and other the keys. Missing where no query of the one sees a key of the
    other.

    Raises
    ------
    HeadscopeError
        For a grouping that these prompts do not have, labels that do not fit them, cross-attention,
        or an option out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(3, 40)), list(range(5, 42))]
    >>> execute("segments", model, given, options={"causal_prompts": 1})["enrichment"].dims
    ('layer', 'head', 'from', 'to')
    """
    from headscope.analyses.token_groups import _segment_mass, _segmenting

    options.one_of("by", by, _segmenting.WAYS)
    for name, count, least in (
        ("pieces", pieces, 1), ("rare", rare, 0), ("causal_prompts", causal_prompts, 0),
    ):  # fmt: skip
        options.at_least(name, count, least)
    options.at_least("enriched", enriched, 0.0)
    require(capture, NEEDS, "segments")
    options.one_text(capture.attrs.get("attention", "self"), "segments")
    made = _segmenting.segment(
        capture, model, prompts, by=by, pieces=pieces, rare=rare, labels=labels
    )
    given = _segment_mass.given(capture)
    names = list(made.names)
    cut = given[:causal_prompts]
    total = len(given) + len(cut) * len(names) ** 2
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    masses, shares, own = [], [], []
    for prompt, numbers in zip(given, made.numbers, strict=True):
        rows = _segment_mass.members(numbers, len(names))
        even = _segment_mass.even(capture, numbers, len(names), rows)
        mass = _segment_mass.masses(model, prompt, numbers, len(names), rows)
        # What nobody can see has no share to compare with.
        masses.append(np.where(np.isnan(even), np.nan, mass))
        sizes = np.array([len(one) for one in rows]) / sum(map(len, rows))
        own.append((np.nan_to_num(np.einsum("lhss->lhs", mass)) * sizes).sum(-1))
        own[-1][~attending(capture)] = np.nan
        shares.append(np.broadcast_to(even, mass.shape))
        step()
    mass, enrichment = np.stack(masses), np.stack(masses) / np.stack(shares)

    convention = f"{made.said}; mean over the queries of a segment; {len(given)} prompt(s)"
    even_said = f"mass over the share of the visible keys; 1 is even; {convention}"
    links, pairs = ("layer", "head", "from", "to"), ("one", "other")
    variables: dict[str, xr.Variable] = {
        **averaged(
            "own_mass", ("layer", "head"), np.stack(own), "Mass within the query's own segment",
            "share", "sequential", 0, 1, seed=seed, convention=f"mean over queries; {made.said}; "
            f"{len(given)} prompt(s)", source=SOURCE,
        ),
        **averaged(
            "segment_mass", links, mass, "Mass from segment to segment", "share", "sequential",
            0, 1, seed=seed, convention=convention, source=SOURCE,
        ),
        **averaged(
            "enrichment", links, enrichment, "Enrichment from segment to segment",
            "× the even share", "sequential", 0, seed=seed, convention=even_said, source=SOURCE,
        ),
        **averaged(
            "mean_mass", pairs, average(mass, (1, 2)),
            "Mass from segment to segment, mean of heads", "share", "sequential", 0, 1, seed=seed,
            convention=convention, source=SOURCE,
        ),
        **averaged(
            "mean_enrichment", pairs, average(enrichment, (1, 2)),
            "Enrichment from segment to segment, mean of heads", "× the even share", "sequential",
            0, seed=seed, convention=even_said, source=SOURCE,
        ),
    }  # fmt: skip
    told = "No links were cut: causal_prompts is 0."
    if cut:
        effect = np.stack(
            [_cut(capture, model, prompt, made, number, step) for number, prompt in enumerate(cut)]
        )
        title, units, scale = _segment_mass.units(capture)
        told = _verdict(variables["mean_mass"].values, average(effect, (0,)), names, units)
        variables |= averaged(
            "link_effect", pairs, effect, f"{title}: keys of a segment hidden from another",
            units, scale, None if scale == "diverging" else 0, seed=seed, evidence="causal",
            note=told, source=SOURCE,
            convention=f"all heads; read at the queries that no longer see; {len(cut)} prompt(s); "
            f"{made.said}",
        )  # fmt: skip
    kinds = _heads(variables["enrichment"].values, names, enriched)
    best = "; ".join(f"{link}: {', '.join(found[:3])}" for link, found in list(kinds.items())[:4])
    return dataset(
        capture,
        variables,
        {"from": names, "to": names, "one": names, "other": names},
        convention=convention,
        heads_by_type=kinds,
        note=f"Segments: {made.said}. Heads with most enrichment, {best or 'none'}. {told}",
    )


def _cut(
    capture: xr.Dataset, model: Model, prompt: Any, made: Segments, number: int, step: Any
) -> Array:
    """Hide each segment from each in turn and read what that does to the queries (from, to)."""
    from headscope.analyses.token_groups import _segment_mass

    count = len(made.names)
    found = np.full((count, count), np.nan)
    numbers = made.numbers[number]
    rows = _segment_mass.members(numbers, count)
    seen = _segment_mass.even(capture, numbers, count, rows)[:, 0]
    answer = made.answers[number] if made.answers else None
    if answer is not None and (model.context is None or len(prompt) < model.context):
        # What is asked at the end has its answer, which the prompt itself does not hold.
        prompt = [*prompt, answer]
    hiding = _segment_mass.Hiding(capture, model, prompt)
    for one in range(count):
        for other in range(count):
            if not np.isnan(seen[:, one, other]).all():
                effect = hiding.effect(rows[other].tolist(), rows[one].tolist())
                found[one, other] = _segment_mass.mean_of(effect, rows[one])
            step()
    return found


def _verdict(mass: Array, effect: Array, names: list[str], units: str) -> str:
    """Say whether the links with most mass are those whose loss changes most."""
    from scipy.stats import spearmanr

    known = ~np.isnan(mass) & ~np.isnan(effect)
    if not known.any():
        return "INCONCLUSIVE: no link could be cut."
    one, other = np.unravel_index(np.where(known, effect, -np.inf).argmax(), effect.shape)
    told = f"the dearest link is {names[one]} → {names[other]} ({effect[one, other]:+.3f} {units})"
    if known.sum() < 4 or np.ptp(effect[known]) == 0 or np.ptp(mass[known]) == 0:
        return f"INCONCLUSIVE: too few links that differ to compare with the mass; {told}."
    rho = float(spearmanr(mass[known], effect[known]).statistic)
    agrees = "Causal check agrees" if rho >= AGREES else "DISAGREEMENT"
    return (
        f"{agrees}: mass and effect of cutting {int(known.sum())} links rank alike with "
        f"ρ = {rho:+.2f}; {told}."
    )


def _heads(enrichment: Array, names: list[str], least: float) -> dict[str, list[str]]:
    """Name the heads with most enrichment of each link, the most enriched links first."""
    found = []
    for one, looking in enumerate(names):
        for other, looked in enumerate(names):
            scores = np.nan_to_num(enrichment[:, :, one, other])
            ranked = np.argsort(-scores, axis=None, kind="stable")[:NAMED]
            places = [np.unravel_index(at, scores.shape) for at in ranked]
            passing = [(int(a), int(b)) for a, b in places if scores[a, b] >= least]
            if passing:
                heads = [label(head) for head in passing]
                found.append((float(scores.max()), f"{looking} → {looked}", heads))
    found.sort(key=lambda each: -each[0])
    return {link: heads for _, link, heads in found[:LINKS]}
