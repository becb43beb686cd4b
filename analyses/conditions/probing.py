"""Probing: which token is linked to which, told from attention weights alone.

A linear classifier sees the weights of all heads between two tokens, in both directions where the
model looks both ways, and nothing else; it has to find the one token that a query is linked to,
such as the stated value that a question asks for, on prompts that it was not trained on. Beside it
stand the best single head, the best fixed distance, a classifier trained on shuffled links and one
on the same model with random weights. The causal number: how far the output at the query moves when
the link is cut in the heads of the largest coefficients, against as many others.

Source: Clark et al., What Does BERT Look At? (1906.04341), whose probe is a softmax over the words
of a sentence; this one is a logistic regression on pairs, ranked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import random_sets
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    heads,
    interval,
    label,
    require,
    top,
    variable,
)
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.analyses.conditions import _linked_pairs
from headscope.analyses.conditions._link_probe import LinkProbe, fixed_offset, head_hits, shuffled
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.analyses.conditions._linked_pairs import Link
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ("lse",)
KEEP = ("q", "k")
TASK = "recall"
PROMPTS = 24

SOURCE = "Clark et al. 1906.04341"
DIRECTIONS = ("from the query", "to the query")
CONDITIONS = ("link cut in probe heads", "link cut in random other heads")
# What moves below this is no effect to speak of.
LEAST_NATS = 0.01
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    relation: str = "evidence",
    links: int = 8,
    negatives: int = 32,
    shuffles: int = 5,
    untrained: bool = True,
    best: int = 4,
    checked: int = 12,
    seed: int = 0,
) -> xr.Dataset:
    """Train a classifier of links on half of the prompts, and judge it on the others.

    Parameters
    ----------
    capture
        Capture of the task with the kept ``q`` and ``k`` and the statistic ``lse``.
    model
        Model that was captured.
    task
        Prompts with links; a task of your own names, as the evidence of a question, what the asked
        word is linked to.
    relation
        ``evidence`` (from where a task asks to the tokens that hold the answer) or ``duplicate``
        (from a token to its earlier copies).
    links
        Links of a prompt, at most.
    negatives
        Other tokens a link that train the classifier: half of them those that some head looks at
        most, half at random.
    shuffles
        Classifiers trained on shuffled links.
    untrained
        Whether the same model with random weights is probed; it takes as much memory again.
    best
        Heads with the largest coefficients, in which links are cut; half of all at most.
    checked
        Links of the causal check.
    seed
        Seed of the split, the draws, the random weights and the bootstrap.

    Returns
    -------
    Dataset with ``accuracy`` (probe; share of links whose token is found, test prompts),
    ``coefficient`` (layer, head; log odds a standard deviation of the weight) and
    ``head_accuracy`` (layer, head; share of links that the head alone finds by its largest weight,
    nothing is trained); both have the dim direction where the model looks both ways; and ``moved``
    (condition; by how much the output at the query moves, in nats). With 95 % intervals over
    prompts, of ``moved`` over links.

    Raises
    ------
    NotApplicable
        With fewer than 4 prompts, without links of the relation, for a capture without q, k and
        lse, or an option out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> options = {"untrained": False, "checked": 2}
    >>> result = execute("probing", load_model("headscope/bundled"), n=4, options=options)
    >>> result["accuracy"].dims
    ('probe',)
    """
    from headscope.analyses.conditions._untrained import untrained_model
    from headscope.probes import capture as capture_again
    from headscope.probes.prompts.reading import read

    options.one_of("relation", relation, _linked_pairs.RELATIONS)
    for name, value in (
        ("links", links), ("negatives", negatives), ("shuffles", shuffles), ("best", best),
        ("checked", checked),
    ):  # fmt: skip
        options.at_least(name, value, 1)
    require(capture, (*KEEP, *NEEDS), "probing")
    qk_rows.refuse_other(capture, "probing")
    given = read(model, task)
    count = len(given.ids)
    if count != capture.sizes["prompt"]:
        raise NotApplicable(
            f"capture: it holds {capture.sizes['prompt']} prompts and the task has {count}; "
            "capture this task"
        )
    if count < 4:
        raise NotApplicable(f"n: {count} prompts cannot be split; ask for 4 or more")
    both_ways = not model.geometry.causal
    found = _linked_pairs.find(given, relation, links, both_ways=both_ways, seed=seed)
    order = np.random.default_rng(seed).permutation(sorted({link.prompt for link in found}))
    half = set(order[: len(order) // 2].tolist())
    train = [at for at, link in enumerate(found) if link.prompt in half]
    test = [at for at, link in enumerate(found) if link.prompt not in half]
    if not train or not test:
        raise NotApplicable(
            "relation: one prompt alone has links, which cannot be split; give others"
        )
    right = [link.right for link in found]
    owner = np.array([found[at].prompt for at in test])

    features = _linked_pairs.weights(capture, found, both_ways=both_ways)
    probe, hits = _judged(features, right, train, test, negatives, seed)
    others = [
        _judged(features, shuffled(right, seed + 1 + turn), train, test, negatives, seed, right)[1]
        for turn in range(shuffles)
    ]
    alone = head_hits(features, right)
    shift = fixed_offset([found[at].query - _keys(found[at]) for at in train])
    first = np.nan_to_num(alone[train].mean(0), nan=-1.0)
    rows = {
        "all heads": hits,
        "best single head": alone[test][:, *np.unravel_index(first.argmax(), first.shape)],
        "fixed distance": np.array(
            [float(found[at].query - shift in _keys(found[at])) for at in test]
        ),
        "shuffled links": np.mean(others, axis=0),
    }
    if untrained:
        blank = untrained_model(model, seed)
        again = capture_again(blank, task, stats=NEEDS, keep=KEEP)
        blind = _linked_pairs.weights(again, found, both_ways=both_ways)
        rows["random weights"] = _judged(blind, right, train, test, negatives, seed)[1]
    rows["chance"] = np.array([right[at].mean() for at in test])

    said = (
        f"{relation}: {len(train)} links train, {len(test)} of other prompts test; a link has "
        f"{np.mean([len(each) for each in right]):.0f} candidates; {count} prompts of {task.name}"
    )
    grid: tuple[str, ...] = ("direction", "layer", "head") if both_ways else ("layer", "head")
    variables = averaged(
        "accuracy", ("probe",), _by_prompt(np.stack(list(rows.values()), axis=1), owner),
        "Links found from attention alone", "share of links", "sequential", 0, 1, seed=seed,
        source=SOURCE, convention=f"fixed distance: {shift} tokens; shuffled: mean of {shuffles}; "
        f"{said}",
    )  # fmt: skip
    coefficients = probe.coefficients
    variables["coefficient"] = variable(
        grid, coefficients if both_ways else coefficients[0], "Coefficient of the head in the "
        "probe", "log odds per spread", "diverging", source=SOURCE, evidence="correlational",
        convention=f"logistic regression on standardized weights, L2; {said}",
    )  # fmt: skip
    single = _by_prompt(alone, np.array([link.prompt for link in found]))
    variables |= averaged(
        "head_accuracy", grid, single if both_ways else single[:, 0], "Links that the head finds "
        "alone", "share of links", "sequential", 0, 1, seed=seed, source=SOURCE,
        evidence="correlational",
        convention=f"largest weight among the candidates, nothing is trained; {said}",
    )  # fmt: skip
    coords: dict[str, Any] = {"probe": list(rows)}
    if both_ways:
        coords["direction"] = list(DIRECTIONS)
    pool = heads(capture)
    chosen = top(coefficients.max(0), min(best, len(pool) // 2))
    note = _said(variables["accuracy"].values, list(rows))
    if model.module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        note += " No causal check: the model predicts no words."
    else:
        drawn = random_sets([one for one in pool if one not in chosen], len(chosen), 1, seed)[0]
        moved = _linked_pairs.cut(
            model, given.ids, [found[at] for at in test][:checked], (chosen, drawn),
            both_ways=both_ways,
        )  # fmt: skip
        mean, lower, upper = bootstrap(moved, seed=seed)
        variables |= interval(
            "moved", ("condition",), mean, lower, upper, "Output moved by cutting links", "nats",
            "sequential", 0, evidence="causal", source=SOURCE,
            convention=f"KL divergence from the intact output at the query of {len(moved)} links; "
            f"{len(chosen)} heads with the largest coefficients, or as many others",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
        note += f" {_verdict(moved, seed)}"
    return dataset(
        capture,
        variables,
        coords,
        convention=said,
        heads_by_type={f"probe, {relation}": [label(head) for head in chosen]},
        note=note,
    )


def _judged(
    features: list[Array],
    right: list[NDArray[np.bool_]],
    train: list[int],
    test: list[int],
    negatives: int,
    seed: int,
    truth: list[NDArray[np.bool_]] | None = None,
) -> tuple[LinkProbe, Array]:
    """Train on some links, and return the probe and its hits on the others (link,)."""
    probe = LinkProbe([features[at] for at in train], [right[at] for at in train], negatives, seed)
    judge = right if truth is None else truth
    return probe, probe.hits([features[at] for at in test], [judge[at] for at in test])


def _keys(link: Link) -> NDArray[np.int64]:
    return link.candidates[link.right]


def _by_prompt(values: Array, owner: NDArray[np.int64]) -> Array:
    """Average what links of one prompt have (prompt, ...)."""
    return np.stack([values[owner == one].mean(0) for one in np.unique(owner)])


def _said(accuracy: Array, names: list[str]) -> str:
    values = dict(zip(names, accuracy.tolist(), strict=True))
    told = ", ".join(f"{name} {values[name]:.2f}" for name in names[1:])
    least = max(each for name, each in values.items() if name not in names[:2])
    word = "" if values["all heads"] > least else "DISAGREEMENT: no better than a baseline. "
    few = (
        " The probe finds fewer than one head alone: give it more links to train on."
        if values["all heads"] < values["best single head"]
        else ""
    )
    return f"{word}Links found by all heads: {values['all heads']:.2f} ({told}).{few}"


def _verdict(moved: Array, seed: int) -> str:
    own, other = moved.mean(0)
    said = (
        f"cutting the link in the probe's heads moves the output by {own:.3f} nats, in as many "
        f"random others by {other:.3f}"
    )
    if not (moved > 1e-9).any():
        return f"INCONCLUSIVE: {said}; the coefficients are correlational here."
    if len(moved) < 2:
        return f"INCONCLUSIVE (one link has no interval): {said}."
    apart = float(bootstrap(moved[:, 0] - moved[:, 1], seed=seed)[1])
    if own > LEAST_NATS and apart > 0:
        return f"Causal check agrees: {said}."
    return f"DISAGREEMENT: {said}; the coefficients are correlational here."
