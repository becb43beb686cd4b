"""Probing: which token is linked to which, read from attention weights alone.

A linear classifier sees the weights of all heads between two tokens, in both directions where the
model attends both ways, and nothing else; it has to find the one token that a query is linked to,
such as the stated value that a question asks for, on prompts that it was not trained on. The
baselines are the best single head, the best fixed distance, a classifier trained on shuffled links
and one on the same model with random weights. The causal number: how far the output at the query
moves when the link is cut in the heads of the largest coefficients, against as many others.

Source: Clark et al., What Does BERT Look At? (1906.04341), whose probe is a softmax over the words
of a sentence; this one is a logistic regression on pairs, ranked.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import random_weights
from headscope.analyses._interventions.causal_check import random_sets
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.options import AtLeast, OneOf
from headscope.analyses._runtime.results import (
    ZERO_TO_ONE,
    Results,
    heads,
    label,
    require,
    require_prompts,
    top,
)
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.conditions import _linked_pairs
from headscope.analyses.conditions._link_probe import LinkProbe, fixed_offset, head_hits, shuffled
from headscope.analyses.conditions._linked_pairs import RELATIONS, Link
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.capturing.capture import capture as capture_again
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task

NEEDS = ("lse",)
KEEP = ("q", "k")
TASK = "recall"
PROMPTS = 32
QUICK = {"shuffles": 1, "untrained": False, "checked": 2}
SUPPORTS = {"encoder", "hybrid"}

SOURCE = "Clark et al. 1906.04341"
DIRECTIONS = ("from the query", "to the query")
CONDITIONS = ("link cut in probe heads", "link cut in random other heads")
# What moves below this is no effect to speak of.
LEAST_NATS = 0.01


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    relation: Annotated[str, OneOf(RELATIONS)] = "evidence",
    links: Annotated[int, AtLeast(1)] = 8,
    negatives: Annotated[int, AtLeast(1)] = 32,
    shuffles: Annotated[int, AtLeast(1)] = 5,
    untrained: bool = True,
    best: Annotated[int, AtLeast(1)] = 4,
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Train a classifier of links on half of the prompts, and test it on the others.

    Parameters
    ----------
    capture, model, task
        Capture, with the kept ``q`` and ``k`` and the statistic ``lse``, of four prompts or more
        with links; a task of your own names, as the evidence of a question, what the word at the
        question is linked to.
    relation
        ``evidence`` (from where a task asks to the tokens that hold the answer) or ``duplicate``
        (from a token to its earlier copies).
    links
        Links of a prompt, at most.
    negatives
        Other tokens a link that train the classifier: half of them those with the largest
        weight of any head, half at random.
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
    nothing is trained); both have the dim direction where the model attends both ways; and
    ``moved`` (condition; by how much the output at the query moves, in nats). With 95 % intervals
    over prompts, of ``moved`` over links.
    """
    require(capture, (*KEEP, *NEEDS), "probing")
    qk_rows.refuse_other(capture, "probing")
    prompts = read(model, task)
    count = len(prompts.ids)
    require_prompts(capture, count)
    if count < 4:
        raise NotApplicable(f"n: {count} prompts cannot be split; ask for 4 or more")
    both_ways = not model.geometry.causal
    pairs = _linked_pairs.find(prompts, relation, links, both_ways=both_ways, seed=seed)
    split = _Split(pairs, negatives, seed)
    features = _linked_pairs.weights(capture, pairs, both_ways=both_ways)
    probe, hits = split.probe(features)
    alone = head_hits(features, split.right)
    shift = fixed_offset([pairs[at].query - _keys(pairs[at]) for at in split.train])
    rows = {"all heads": hits, **split.baselines(features, alone, shift, shuffles)}
    if untrained:
        blank = random_weights.untrained(model, seed, "untrained")
        again = capture_again(blank, task, stats=NEEDS, keep=KEEP)
        rows["random weights"] = split.probe(
            _linked_pairs.weights(again, pairs, both_ways=both_ways)
        )[1]
    rows["chance"] = np.array([split.right[at].mean() for at in split.test])

    convention = (
        f"{relation}: {len(split.train)} links train, {len(split.test)} of other prompts test; a "
        f"link has {amount(np.mean([len(flags) for flags in split.right]))} candidates; {count} "
        f"prompts of {task.name}"
    )
    results = Results(capture, seed=seed, source=SOURCE, evidence="correlational")
    grid: tuple[str, ...] = ("direction", "layer", "head") if both_ways else ("layer", "head")
    owner = np.array([pairs[at].prompt for at in split.test])
    results.add_mean(
        "accuracy", ("probe",), _by_prompt(np.stack(list(rows.values()), axis=1), owner),
        "Links found from attention alone", "share of links", *ZERO_TO_ONE,
        convention=f"fixed distance: {shift} tokens; shuffled: mean of {shuffles}; {convention}",
    )  # fmt: skip
    coefficients = probe.coefficients
    results.add(
        "coefficient", grid, coefficients if both_ways else coefficients[0],
        "Coefficient of the head in the probe", "log odds per spread", "diverging",
        convention=f"logistic regression on standardized weights, L2; {convention}",
    )  # fmt: skip
    single = _by_prompt(alone, np.array([link.prompt for link in pairs]))
    results.add_mean(
        "head_accuracy", grid, single if both_ways else single[:, 0],
        "Links that the head finds alone", "share of links", *ZERO_TO_ONE,
        convention=f"largest weight among the candidates, nothing is trained; {convention}",
    )  # fmt: skip
    coords: dict[str, Any] = {"probe": list(rows)}
    if both_ways:
        coords["direction"] = list(DIRECTIONS)
    pool = heads(capture)
    chosen = top(coefficients.max(0), min(best, len(pool) // 2))
    accuracy = dict(zip(rows, results["accuracy"].values.tolist(), strict=True))
    verdict, note = _probe_verdict(accuracy), ""
    if model.module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        note = "No causal check: the model predicts no words."
    else:
        drawn = random_sets([head for head in pool if head not in chosen], len(chosen), 1, seed)[0]
        moved = _linked_pairs.cut(
            model, prompts.ids, [pairs[at] for at in split.test][:checked], (chosen, drawn),
            both_ways=both_ways,
        )  # fmt: skip
        results.add_mean(
            "moved", ("condition",), moved, "Output moved by cutting links", "nats", "sequential",
            0, evidence="causal",
            convention=f"KL divergence from the clean output at the query of {len(moved)} links; "
            f"{len(chosen)} heads with the largest coefficients, or as many others",
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
        verdict &= _causal_verdict(moved)
    return results.dataset(
        coords,
        verdict,
        note,
        convention=convention,
        heads_by_type={f"probe, {relation}": [label(head) for head in chosen]},
    )


class _Split:
    """Links of one half of the prompts, which train a probe, and those of the other, which test it.

    ``right`` names the linked candidates of every link; ``train`` and ``test`` are places of links.
    """

    def __init__(self, links: Sequence[Link], negatives: int, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(sorted({link.prompt for link in links}))
        half = set(order[: len(order) // 2].tolist())
        self.links, self.negatives, self.seed = links, negatives, seed
        self.right = [link.right for link in links]
        self.train = [at for at, link in enumerate(links) if link.prompt in half]
        self.test = [at for at, link in enumerate(links) if link.prompt not in half]
        if not self.train or not self.test:
            raise NotApplicable(
                "relation: one prompt alone has links, which cannot be split; give others"
            )

    def probe(
        self, features: Sequence[Array], right: Sequence[NDArray[np.bool_]] | None = None
    ) -> tuple[LinkProbe, Array]:
        """Train a probe, also on other than the right links; return it and its hits (link,)."""
        labels = self.right if right is None else right
        learned = [features[at] for at in self.train], [labels[at] for at in self.train]
        tested = [features[at] for at in self.test], [self.right[at] for at in self.test]
        probe = LinkProbe(*learned, self.negatives, self.seed)
        return probe, probe.hits(*tested)

    def baselines(
        self, features: Sequence[Array], alone: Array, shift: int, shuffles: int
    ) -> dict[str, Array]:
        """Return the hits (link,) of the best head, one distance, and probes of shuffled links."""
        accuracy = np.nan_to_num(alone[self.train].mean(0), nan=-1.0)
        head = np.unravel_index(accuracy.argmax(), accuracy.shape)
        others = [
            self.probe(features, shuffled(self.right, self.seed + 1 + turn))[1]
            for turn in range(shuffles)
        ]
        tested = [self.links[at] for at in self.test]
        return {
            "best single head": alone[self.test][:, *head],
            "fixed distance": np.array(
                [float(link.query - shift in _keys(link)) for link in tested]
            ),
            "shuffled links": np.mean(others, axis=0),
        }


def _keys(link: Link) -> NDArray[np.int64]:
    return link.candidates[link.right]


def _by_prompt(values: Array, owner: NDArray[np.int64]) -> Array:
    """Average what links of one prompt have (prompt, ...)."""
    return np.stack([values[owner == prompt].mean(0) for prompt in np.unique(owner)])


def _probe_verdict(accuracy: dict[str, float]) -> Verdict:
    """Compare the probe with its baselines, the best single head aside."""
    probe, single = accuracy["all heads"], accuracy["best single head"]
    numbers = ", ".join(
        f"{name} {amount(value)}" for name, value in accuracy.items() if name != "all heads"
    )
    text = f"Links found by all heads: {amount(probe)} ({numbers})."
    if probe < single:
        text += " The probe finds fewer than one head alone: give it more links to train on."
    if probe > max(list(accuracy.values())[2:]):
        return Verdict("supported", text)
    return Verdict("disagreement", f"No better than a baseline. {text}")


def _causal_verdict(moved: Array) -> Verdict:
    own, other = moved.mean(0)
    text = (
        f"cutting the link in the probe's heads moves the output by {amount(own)} nats, in as many "
        f"random others by {amount(other)}"
    )
    remark = "; the coefficients are correlational here"
    if not (moved > 1e-9).any():
        return Verdict("too_few", f"No causal evidence: {text}{remark}.")
    over = [moved[:, 0] - LEAST_NATS, moved[:, 0] - moved[:, 1]]
    return causal_verdict(np.stack(over, 1), text, remark)
