"""Token classes: the attention that BOS, punctuation, stop words and rare words receive.

Every token is of one class: the first one (BOS or [CLS]), another special token, punctuation, a
stop word, a rare word, or another; of an image, a patch or what the model puts before the patches.
A class with many tokens gets much from any head, so beside its mass stands the enrichment: the mass
over the share of the visible keys that are of the class, 1 for an even spread. The causal number:
what changes when every head is kept from seeing the class, and when it is kept from seeing as many
random tokens of other classes. Small words that seem empty often carry much of the context.

Sources: LLM-Microscope (punctuation and stop words); RefAM (stop words as magnets of attention);
Don't Miss the Forest for the Trees (tokens of images).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._measurements.received import queries_of_keys, weight
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import SHARE, Results, attending, named, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap
from headscope.analyses._stats.effect_size import differs_from_zero
from headscope.analyses._stats.length_trend import mean as known_mean
from headscope.analyses.token_groups import _segment_mass
from headscope.analyses.token_groups._segmenting import Segments, segment
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ("received",)
QUICK = {"draws": 1}
SUPPORTS = {"encoder", "vision", "hybrid"}

SOURCE = "LLM-Microscope; RefAM"
CONDITIONS = ("class hidden", "as many others hidden")
NAMED = 6


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    rare: Annotated[int, AtLeast(0)] = 1,
    enriched: Annotated[float, AtLeast(0)] = 2.0,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    draws: Annotated[int, AtLeast(1)] = 2,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the mass that every class of tokens receives, and what hiding the class changes.

    Parameters
    ----------
    capture, model
        Capture with ``received`` (prompt, layer, head, key), and the model behind it.
    rare
        A word is rare that occurs at most this often in all prompts together; the models' own
        training text is not known.
    enriched
        Enrichment from which a head is named for a class.
    causal_prompts
        Prompts in which classes are hidden, from the first on; 0 leaves that out.
    draws
        Random sets of as many other tokens.
    seed
        Seed of the bootstrap over prompts and of the random sets.

    Returns
    -------
    Dataset with ``class_mass`` (layer, head, token_class; share of weight, 0 to 1),
    ``class_enrichment`` (layer, head, token_class; times the even share), ``mean_mass``
    (token_class; mean over heads), ``token_share`` (token_class; share of the tokens) and
    ``hiding_effect`` (condition, token_class; the causal number; nats a token, or share of the
    hidden state), with 95 % intervals over prompts. A class without a token is left out.
    """
    require(capture, NEEDS, "token_classes", ("self",))
    classes = segment(capture, model, by="kinds", rare=rare)
    names, prompts = list(classes.names), _segment_mass.inputs(capture)
    mass, enrichment, shares = _masses(capture, classes)

    convention = f"{classes.description}; mean over all queries of {len(prompts)} prompt(s)"
    grid = ("layer", "head", "token_class")
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_means(
        ("class_mass", grid, mass, "Mass on a class of tokens", SHARE),
        ("class_enrichment", grid, enrichment, "Enrichment of a class of tokens",
         ("× the even share", "sequential", 0),
         f"mass over the share of the visible keys; 1 is even; {convention}"),
        ("mean_mass", ("token_class",), known_mean(mass, (1, 2)),
         "Mass on a class of tokens, mean of heads", SHARE),
        ("token_share", ("token_class",), shares, "Share of the tokens", SHARE,
         classes.description),
    )  # fmt: skip
    coords: dict[str, Any] = {"token_class": names}
    verdict = None
    if causal_prompts:
        effect = _hide(capture, model, classes, prompts[:causal_prompts], draws, seed)
        title, units, scale = _segment_mass.units(capture)
        verdict = _verdict(effect, results["mean_mass"].values, names, units)
        results.add_mean(
            "hiding_effect", ("condition", "token_class"), effect,
            f"{title} a class of tokens" if scale == "diverging" else f"{title}, a class hidden",
            units, scale, None if scale == "diverging" else 0, evidence="causal",
            note=verdict.text,
            convention=f"hidden from every query of every head; read at all tokens but the "
            f"first; others: {draws} random draw(s) of other tokens, missing where they are "
            f"fewer than those of the class; {len(effect)} prompt(s); {classes.description}",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
    enrichments = np.moveaxis(results["class_enrichment"].values, -1, 0)
    by_class = {
        name: named(scores, scores >= enriched)[:NAMED]
        for name, scores in zip(names, enrichments, strict=True)
    }
    best = "; ".join(f"{kind}: {', '.join(heads[:4])}" for kind, heads in by_class.items() if heads)
    remark = "" if verdict else " Nothing was hidden: causal_prompts is 0."
    return results.dataset(
        coords,
        heads_by_type=by_class,
        note=f"Heads with most enrichment, {best or 'none'}.{remark}",
        verdict=verdict,
    )


def _masses(capture: xr.Dataset, classes: Segments) -> tuple[Array, Array, Array]:
    """Return mass and enrichment (prompt, layer, head, class), share of tokens (prompt, class)."""
    count = len(classes.names)
    received = np.nan_to_num(weight(capture)) * queries_of_keys(capture, capture["length"].values)
    mass = np.full((len(classes.numbers), *received.shape[1:3], count), np.nan)
    enrichment, shares = mass.copy(), np.zeros((len(classes.numbers), count))
    for row, numbers in enumerate(classes.numbers):
        belongs = (numbers[:, None] == np.arange(count)).astype(float)
        mass[row] = received[row, ..., : len(numbers)] @ belongs / len(numbers)
        every = [np.arange(len(numbers))]
        even = _segment_mass.even(capture, numbers, count, every)[:, :, 0]
        mass[row] = np.where(np.isnan(even), np.nan, np.clip(mass[row], 0, 1))
        mass[row, ~attending(capture)] = np.nan
        enrichment[row], shares[row] = mass[row] / even, belongs.mean(0)
    return mass, enrichment, shares


def _hide(
    capture: xr.Dataset, model: Model, classes: Segments, prompts: list[Any], draws: int, seed: int
) -> Array:
    """Hide every class, and as many random others (prompt, condition, token_class)."""
    generator = np.random.default_rng(seed)
    effects = np.full((len(prompts), len(CONDITIONS), len(classes.names)), np.nan)
    for row, prompt in enumerate(prompts):
        hiding = _segment_mass.Hiding(capture, model, prompt)
        # The first query of a text sees itself alone, which says nothing of the class.
        readers = np.arange(1, len(classes.numbers[row]))
        for column, name in enumerate(classes.names):
            inside = classes.positions(row, name)
            outside = np.setdiff1d(readers, inside)
            if not inside or not len(outside):
                continue
            effects[row, 0, column] = _segment_mass.mean_of(hiding.effect(inside), readers)
            if len(inside) >= len(outside):
                continue
            sets = [generator.permutation(outside)[: len(inside)].tolist() for _ in range(draws)]
            effects[row, 1, column] = np.mean(
                [_segment_mass.mean_of(hiding.effect(others), readers) for others in sets]
            )
    return effects


def _verdict(effect: Array, mass: Array, names: list[str], units: str) -> Verdict:
    """Conclude which classes do more than random tokens, and whether those get the mass."""
    over = effect[:, 0] - effect[:, 1]
    gap, mean = bootstrap(over)[0], bootstrap(effect)[0]
    compared = np.flatnonzero(~np.isnan(gap))
    if not len(compared):
        return Verdict(
            "too_few", "No class is small enough to compare it with as many other tokens."
        )
    best = compared[mass[compared].argmax()]
    text = (
        f"{names[best]} tokens get {amount(mass[best])} of the attention, the most of the classes "
        f"that can be compared; hiding them changes {amount(mean[0, best])} {units}, hiding as "
        f"many others {amount(mean[1, best])}."
    )
    different = differs_from_zero(over)
    more = ", ".join(names[column] for column in compared if different[column] and gap[column] > 0)
    less = ", ".join(names[column] for column in compared if different[column] and gap[column] < 0)
    text = f"{text} More than random tokens matter: {more or 'none'}; less: {less or 'none'}"
    return causal_verdict(over, text, claimed=np.array([best]))
