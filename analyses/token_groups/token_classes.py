"""Token classes: the attention that BOS, punctuation, stop words and rare words receive.

Every token is of one class: the first one (BOS or [CLS]), another special token, punctuation, a
stop word, a rare word, or another; of an image, a patch or what the model puts before the patches.
A class with many tokens gets much from any head, so beside its mass stands the enrichment: the mass
over the share of the visible keys that are of the class, 1 for an even spread. The causal number:
what changes when every head is kept from seeing the class, and when it is kept from seeing as many
random tokens of other classes. Small words that look empty often carry much of the context.

Sources: LLM-Microscope (punctuation and stop words); RefAM (stop words as magnets of attention);
Don't Miss the Forest for the Trees (tokens of images).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._measurements.received import seers, weight
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import attending, averaged, dataset, label, require
from headscope.analyses._stats.bootstrap import bootstrap

if TYPE_CHECKING:
    from headscope.analyses.token_groups._segmenting import Segments
    from headscope.probes.models.model import Model

NEEDS = ("received",)

SOURCE = "LLM-Microscope; RefAM"
CONDITIONS = ("class hidden", "as many others hidden")
NAMED = 6
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    rare: int = 1,
    enriched: float = 2.0,
    causal_prompts: int = 6,
    draws: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measure the mass that every class of tokens receives, and what hiding the class changes.

    Parameters
    ----------
    capture
        Capture with ``received`` (prompt, layer, head, key).
    model
        Model that was captured.
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
    progress
        Called with (done, total) prompts in which classes are hidden.

    Returns
    -------
    Dataset with ``class_mass`` (layer, head, token_class; share of weight, 0 to 1),
    ``class_enrichment`` (layer, head, token_class; times the even share), ``mean_mass``
    (token_class; mean over heads), ``token_share`` (token_class; share of the tokens) and
    ``hiding_effect`` (condition, token_class; the causal number; nats a token, or share of the
    hidden state), with 95 % intervals over prompts. A class without a token is left out.

    Raises
    ------
    HeadscopeError
        When the capture lacks ``received``, for cross-attention, or an option out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(3, 40)), list(range(5, 42))]
    >>> result = execute("token_classes", model, given, options={"causal_prompts": 1})
    >>> result["class_mass"].dims
    ('layer', 'head', 'token_class')
    """
    from headscope.analyses.token_groups import _segment_mass, _segmenting

    for name, count, least in (
        ("rare", rare, 0), ("causal_prompts", causal_prompts, 0), ("draws", draws, 1),
    ):  # fmt: skip
        options.at_least(name, count, least)
    options.at_least("enriched", enriched, 0.0)
    require(capture, NEEDS, "token_classes")
    options.one_text(capture.attrs.get("attention", "self"), "token_classes")
    made = _segmenting.segment(capture, model, by="kinds", rare=rare)
    names, prompts = list(made.names), _segment_mass.given(capture)

    received = np.nan_to_num(weight(capture)) * seers(capture, capture["length"].values)
    mass = np.full((len(prompts), *received.shape[1:3], len(names)), np.nan)
    enrichment, shares = mass.copy(), np.zeros((len(prompts), len(names)))
    for row, numbers in enumerate(made.numbers):
        belongs = (numbers[:, None] == np.arange(len(names))).astype(float)
        mass[row] = received[row, ..., : len(numbers)] @ belongs / len(numbers)
        every = [np.arange(len(numbers))]
        even = _segment_mass.even(capture, numbers, len(names), every)[:, :, 0]
        mass[row] = np.where(np.isnan(even), np.nan, np.clip(mass[row], 0, 1))
        mass[row, ~attending(capture)] = np.nan
        enrichment[row], shares[row] = mass[row] / even, belongs.mean(0)

    convention = f"{made.said}; mean over all queries of {len(prompts)} prompt(s)"
    grid = ("layer", "head", "token_class")
    variables: dict[str, xr.Variable] = {
        **averaged(
            "class_mass", grid, mass, "Mass on a class of tokens", "share", "sequential", 0, 1,
            seed=seed, convention=convention, source=SOURCE,
        ),
        **averaged(
            "class_enrichment", grid, enrichment, "Enrichment of a class of tokens",
            "× the even share", "sequential", 0, seed=seed, source=SOURCE,
            convention=f"mass over the share of the visible keys; 1 is even; {convention}",
        ),
        **averaged(
            "mean_mass", ("token_class",), _segment_mass.average(mass, (1, 2)),
            "Mass on a class of tokens, mean of heads", "share", "sequential", 0, 1, seed=seed,
            convention=convention, source=SOURCE,
        ),
        **averaged(
            "token_share", ("token_class",), shares, "Share of the tokens", "share", "sequential",
            0, 1, seed=seed, convention=made.said, source=SOURCE,
        ),
    }  # fmt: skip
    told = "Nothing was hidden: causal_prompts is 0."
    coords: dict[str, Any] = {"token_class": names}
    if causal_prompts:
        effect = _hide(capture, model, made, prompts[:causal_prompts], draws, seed, progress)
        title, units, scale = _segment_mass.units(capture)
        told = _verdict(effect, variables["mean_mass"].values, names, units, seed)
        variables |= averaged(
            "hiding_effect", ("condition", "token_class"), effect,
            f"{title} a class of tokens" if scale == "diverging" else f"{title}, a class hidden",
            units, scale, None if scale == "diverging" else 0, seed=seed, evidence="causal",
            note=told, source=SOURCE,
            convention=f"hidden from every query of every head; read at all tokens but the "
            f"first; others: {draws} random draw(s) of other tokens, missing where they are "
            f"fewer than those of the class; {len(effect)} prompt(s); {made.said}",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
    kinds = _heads(variables["class_enrichment"].values, names, enriched)
    best = "; ".join(f"{kind}: {', '.join(found[:4])}" for kind, found in kinds.items() if found)
    return dataset(
        capture,
        variables,
        coords,
        convention=convention,
        heads_by_type=kinds,
        note=f"Heads with most enrichment, {best or 'none'}. {told}",
    )


def _hide(
    capture: xr.Dataset,
    model: Model,
    made: Segments,
    prompts: list[Any],
    draws: int,
    seed: int,
    progress: Progress | None,
) -> Array:
    """Hide every class, and as many random others (prompt, condition, token_class)."""
    from headscope.analyses.token_groups import _segment_mass

    generator = np.random.default_rng(seed)
    found = np.full((len(prompts), len(CONDITIONS), len(made.names)), np.nan)
    for row, prompt in enumerate(prompts):
        hiding = _segment_mass.Hiding(capture, model, prompt)
        for column, name in enumerate(made.names):
            inside = made.places(row, name)
            # The first query of a text sees itself alone, which tells nothing of the class.
            read = np.arange(1, len(made.numbers[row]))
            rest = np.setdiff1d(read, inside)
            if not inside or not len(rest):
                continue
            found[row, 0, column] = _segment_mass.mean_of(hiding.effect(inside), read)
            if len(inside) >= len(rest):
                continue
            sets = [generator.permutation(rest)[: len(inside)].tolist() for _ in range(draws)]
            found[row, 1, column] = np.mean(
                [_segment_mass.mean_of(hiding.effect(one), read) for one in sets]
            )
        if progress is not None:
            progress(row + 1, len(prompts))
    return found


def _verdict(effect: Array, mass: Array, names: list[str], units: str, seed: int) -> str:
    """Say which classes do more than random tokens, and whether it is those that get the mass."""
    gap, lower, upper = bootstrap(effect[:, 0] - effect[:, 1], seed=seed)
    mean = bootstrap(effect, seed=seed)[0]
    compared = np.flatnonzero(~np.isnan(gap))
    if not len(compared):
        return "INCONCLUSIVE: no class is small enough to compare it with as many other tokens."
    best = compared[mass[compared].argmax()]
    said = (
        f"{names[best]} tokens get {mass[best]:.2f} of the attention, the most of the classes that "
        f"can be compared; hiding them changes {mean[0, best]:.3f} {units}, hiding as many others "
        f"{mean[1, best]:.3f}"
    )
    more = [names[one] for one in compared if lower[one] > 0]
    less = [names[one] for one in compared if upper[one] < 0]
    listed = f"More than random tokens matter: {', '.join(more) or 'none'}; less: " + (
        f"{', '.join(less) or 'none'}."
    )
    if len(effect) < 2:
        return f"INCONCLUSIVE (one prompt has no interval): {said}."
    agrees = "Causal check agrees" if lower[best] > 0 else "DISAGREEMENT"
    return f"{agrees}: {said}. {listed}"


def _heads(enrichment: Array, names: list[str], least: float) -> dict[str, list[str]]:
    """Name the heads with most enrichment of each class."""
    from headscope.analyses._runtime.results import top

    return {
        name: [label(head) for head in top(each, min(int((each >= least).sum()), NAMED))]
        for name, each in zip(names, np.moveaxis(enrichment, -1, 0), strict=True)
    }
