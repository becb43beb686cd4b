"""Text basis: words whose directions span what a head writes.

The output of a head varies in as many directions as it is wide. TextSpan names them by words:
chosen is the word along whose direction of the unembedding the outputs vary most, what it explains
is projected out of outputs and words, and so on. The words are chosen on one half of the prompts,
and what share of the variance they explain is measured on the other, against as many directions at
random, chosen from as many in the same way, and against principal components, the most that any
directions explain. In the causal check all heads keep their words alone: what their spaces have of
the words' directions, since a head writes no direction outside its space. A label says along which
word a head varies; only that check says whether the output depends on it more than on any
direction, and its result is reported with the labels.

Source: Gandelsman et al., Interpreting CLIP's Image Representation via Text-Based Decomposition
(2310.05916), whose texts are the single tokens of the vocabulary here.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._measurements import residual_writes, word_tokens
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    Results,
    first_few,
    label,
    named,
    require,
)
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.analyses.head_roles import _prompt_folds, _text_span
from headscope.analyses.head_roles._prompt_folds import Folds
from headscope.kernels.formatting import amount, percent
from headscope.probes.attention import projections
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model

NEEDS = ()
KEEP = ("z",)
SUPPORTS = {"hybrid"}
QUICK = {"checked": 2}

SOURCE = "Gandelsman et al. 2310.05916"
KINDS = ("words", "random", "components")
# Logits of all positions are compared.
LONGEST = 512
CONDITIONS = ("words", "random directions", "their mean alone")


@dataclass(frozen=True)
class KeepDirections(Edit):
    """Replace every head's output by its mean plus a linear map of the deviation, by layer."""

    mean: Float[Tensor, "layer head size"]
    maps: dict[int, Float[Tensor, "head size size"]]

    def apply(
        self, layer: int, z: Float[Tensor, "batch head query size"]
    ) -> Float[Tensor, "batch head query size"]:
        """Map the outputs of one layer."""
        mean = self.mean[layer].to(z)[:, None]
        return mean + torch.einsum("bhqs,hst->bhqt", z - mean, self.maps[layer].to(z))


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    labels: Annotated[int, AtLeast(1)] = 5,
    checked: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Label the output space of every head by words, and measure what they explain of it.

    Parameters
    ----------
    capture, model
        Capture of at least two texts with the kept ``z``, and its model.
    labels
        Words of a head, no more than it has dims.
    checked
        Prompts of the causal check, of those that words were not chosen on; 0 leaves it out, and so
        do prompts above 512 tokens.
    seed
        Seed of the halves, the random directions and the bootstrap.

    Returns
    -------
    Dataset with ``explained``, ``explained_random`` and ``explained_components`` (layer, head;
    share of the variance of a head's output on held-out prompts along its words, random directions
    and principal components), ``advantage`` (words − random), ``label_share`` and ``random_share``
    (layer, head, label; of each label by itself), with 95 % intervals over the held-out prompts,
    and ``moved`` (condition; how far the output of the model moves when all heads keep those
    directions alone, in nats). ``labels`` has the words of every head in order, and the coordinate
    ``first_label`` (layer, head) the first of them; its ``long_name`` and the ``convention`` of
    ``label_share`` say how far the output moves when heads keep their labels alone.
    """
    require(capture, KEEP, "text_basis", ("self",))
    model.check_predicts()
    words = word_tokens.word_tokens(model)
    folds = _prompt_folds.cut(capture, 2, seed)
    labelled = _Labelled(model, capture, folds, labels, words, seed)

    half = [len(torch.unique(folds.prompt[folds.fold == fold])) for fold in (0, 1)]
    halves = f"chosen on {half[0]} prompts, explained on {half[1]} others"
    pool = f"{len(words)} tokens that are words"
    ways = {
        "words": f"{labelled.count} of {pool}; {halves}",
        "random": f"{labelled.count} of {len(words)} random directions, chosen as words; {halves}",
        "components": f"the first {labelled.count} principal components; {halves}",
    }
    moved, unmeasured = _moved(model, capture, folds, labelled, checked)
    weight = _weight(moved)
    results = Results(capture, seed=seed, source=SOURCE)
    shares = {kind: parts.sum(-1) for kind, parts in labelled.shares.items()}
    advantage = shares["words"] - shares["random"]
    results.add_means(
        ("explained", GRID, shares["words"], "Variance along words", SHARE, ways["words"]),
        ("advantage", GRID, advantage, "Variance along words over random directions",
         ("share", "diverging", -1, 1), f"{ways['words']}; less {ways['random']}"),
        ("explained_random", GRID, shares["random"], "Variance along random directions", SHARE,
         ways["random"]),
        ("explained_components", GRID, shares["components"], "Variance along components", SHARE,
         ways["components"]),
        ("label_share", (*GRID, "label"), labelled.shares["words"], "Variance along each word",
         SHARE, f"{ways['words']}; {weight}"),
        ("random_share", (*GRID, "label"), labelled.shares["random"],
         "Variance along each random direction", SHARE, ways["random"]),
    )  # fmt: skip
    title = f"Word along which the output of the head varies most; {weight}"
    coords: dict[str, Any] = {
        "label": np.arange(1, labelled.count + 1),
        "first_label": (GRID, labelled.first.astype(str), {"long_name": title}),
    }
    verdict = _verdict(advantage, shares)
    if moved is not None:
        pattern_substitution.add_moved(
            results, moved, "Output moved when all heads keep few directions",
            f"{labelled.count} directions of every head and its mean", source=SOURCE,
        )  # fmt: skip
        coords["condition"] = list(CONDITIONS)
        verdict &= _causal(moved)
    return results.dataset(coords, verdict, unmeasured, convention=halves, labels=labelled.labels)


def _moved(
    model: Model, capture: xr.Dataset, folds: Folds, labelled: "_Labelled", checked: int
) -> tuple[Array | None, str]:
    """Measure how far the output moves when heads keep few directions (prompt, condition), nats.

    Where it is not measured, None, and a sentence that says so.
    """
    longest = int(capture["length"].values.max())
    if not checked or longest > LONGEST:
        return None, f"No causal check of {checked} prompts of up to {longest} tokens."
    rows = torch.unique(folds.prompt[folds.fold == 1])[:checked].tolist()
    edits = [[edit] for edit in labelled.edits]
    return np.array(
        [pattern_substitution.divergences(model, capture, row, edits) for row in rows]
    ), ""


class _Labelled:
    """Words of every head, shares of the variance (prompt, layer, head, label), and the edits."""

    def __init__(
        self, model: Model, capture: xr.Dataset, folds: Folds, labels: int, words: list[int],
        seed: int,
    ) -> None:  # fmt: skip
        outwards, writes = projections.read(model, ("o",)), residual_writes.head_writes(model)
        towards = _text_span.word_directions(model, words)
        held_out = torch.unique(folds.prompt[folds.fold == 1])
        self.count = min(labels, capture.sizes["size"])
        shape = (len(held_out), model.layers, model.heads, self.count)
        self.shares = {kind: np.full(shape, np.nan) for kind in KINDS}
        self.labels: dict[str, list[str]] = {}
        self.first = np.full(shape[1:3], "", dtype=object)
        size = capture.sizes["size"]
        random = _text_span.random_directions(len(words), towards.shape[1], seed)
        mean = torch.zeros(model.layers, model.heads, size, dtype=torch.float64)
        maps = {
            layer: torch.zeros(len(CONDITIONS), model.heads, size, size, dtype=torch.float64)
            for layer in model.geometry.attending
        }
        for layer, map_ in maps.items():
            z = capture["z"].isel(layer=layer).transpose("prompt", "query", "head", "size")
            rows, outward = folds.rows(z).double(), outwards.of(layer, "o")
            for head in range(model.heads):
                space = _text_span.space(outward[head], writes[layer])
                mean[layer, head] = rows[folds.fold == 0, head].mean(0)
                vectors = (rows[:, head] - mean[layer, head]) @ space.map
                chosen_on = vectors[folds.fold == 0]
                covariance = chosen_on.T @ chosen_on / len(chosen_on)
                if not len(covariance) or not float(covariance.trace()) > 0:
                    continue  # it writes one thing alone
                chosen, along = _text_span.greedy(towards, space, covariance, self.count)
                _, random_basis = _text_span.greedy(random, space, covariance, self.count)
                main_axes = _text_span.components(space, covariance, self.count)
                bases = along, random_basis, main_axes
                for kind, directions in zip(KINDS, bases, strict=True):
                    self.shares[kind][:, layer, head, : len(directions)] = _shares(
                        vectors, directions @ space.basis.T, folds, held_out
                    )
                for index, directions in enumerate(bases[:2]):
                    map_[index, head] = space.keeping(directions)
                names = model.to_str_tokens([words[at] for at in chosen])
                self.labels[label((layer, head))] = [word.strip() for word in names]
                self.first[layer, head] = names[0].strip()
        self.edits = [
            KeepDirections(mean, {layer: map_[index] for layer, map_ in maps.items()})
            for index in range(len(CONDITIONS))
        ]


def _shares(vectors: Tensor, directions: Tensor, folds: Folds, held_out: Tensor) -> Array:
    """Return the share of the variance along each direction on held-out prompts (prompt, label)."""
    rows = (folds.fold == 1).nonzero().flatten()
    total = folds.by_prompt(vectors[rows].square().sum(-1), rows)[held_out]
    along = (vectors[rows] @ directions.T).square()
    parts = torch.stack([folds.by_prompt(column, rows)[held_out] for column in along.T], dim=1)
    return np.asarray((parts / total[:, None]).numpy())


def _verdict(advantage: Array, shares: dict[str, Array]) -> Verdict:
    words, random, most = (float(np.nanmean(shares[kind])) for kind in KINDS)
    text = (
        f"mean over heads {percent(words)} of the variance, {percent(random)} for random "
        f"directions, {percent(most)} for principal components"
    )
    if len(advantage) < LEAST_PROMPTS:
        few = f"{len(advantage)} of {LEAST_PROMPTS} held-out prompts"
        return Verdict("too_few", f"{few} to tell words from random directions: {text}.")
    better = exceeds_zero(advantage)
    measured = int((~np.isnan(advantage).any(0)).sum())
    if not better.any():
        return Verdict("not_supported", f"Words explain no head better than chance: {text}.")
    best = first_few(named(np.where(better, advantage.mean(0), np.nan), better))
    return Verdict(
        "supported",
        f"Words explain {better.sum()} of {measured} heads better than random directions ({best}): "
        f"{text}.",
    )


def _weight(moved: Array | None) -> str:
    """Describe how much the output depends on the labels, to be shown beside them.

    ``moved`` (prompt, condition) is None where it was not measured.
    """
    if moved is None:
        return "whether the output hangs on the labels was not measured"
    words, random, mean = moved.mean(0)
    kept = f"keeping heads to their labels moves the output by {amount(words)} nats"
    beside = f"random directions {amount(random)}, their means {amount(mean)}"
    conclusion = {
        "supported": f"less than random directions do ({beside})",
        "disagreement": f"no less than random directions do ({beside}), so labels name variance, "
        "not what the output hangs on",
    }
    few = f"too few prompts to tell it from random directions ({len(moved)}; {beside})"
    return f"{kept}, {conclusion.get(_causal(moved).state, few)}"


def _causal(moved: Array) -> Verdict:
    words, random, mean = moved.mean(0)
    text = (
        f"with all heads kept to their words the output moves by {amount(words)} nats, to as many "
        f"random directions by {amount(random)}, to their means by {amount(mean)}"
    )
    return causal_verdict(moved[:, 1] - moved[:, 0], text)
