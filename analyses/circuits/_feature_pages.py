"""Pages of single features: where they fire, who writes them, which words, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analyses._interventions import ablation
from headscope.analyses._measurements.unembedding import read_out
from headscope.analyses._runtime.results import SHARE, Results, label
from headscope.analyses._sparse_autoencoders import splicing
from headscope.analyses._sparse_autoencoders.evaluation import Example, Firing, windows
from headscope.analyses._sparse_autoencoders.site import vectors
from headscope.analyses._stats.bootstrap import Array
from headscope.probes.attention import projections

if TYPE_CHECKING:
    from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
    from headscope.probes.models.model import Model

DIMS = ("described",)


@dataclass(frozen=True)
class Pages:
    """Descriptions of features.

    ``by_head`` (described, head) has shares of the decoder's squared norm, NaN of heads that are no
    part of it; ``lanes`` (described, example, query) activations, ``texts`` the tokens beside them;
    ``words`` the token ids that it promotes.
    """

    features: list[int]
    by_head: Array
    lanes: Array
    texts: list[list[list[str]]]
    words: Int[Tensor, "described word"]
    promotes: list[str]
    suppresses: list[str]
    writers: list[str]

    def add(self, results: Results, lost: Array, words_lost: Array) -> None:
        """Add the variables, among them what `splice` finds lost (prompt, described)."""
        about = results.about["convention"]
        results.add(
            "by_head", ("described", "head"), self.by_head, "Written by head", *SHARE,
            convention="squared norm of the feature's decoder row in the head's part of z, as a "
            f"share of the row; exact, no interval; {about}",
        )  # fmt: skip
        results.add_means(
            ("lost", DIMS, lost, "Loss without the feature", ("nats", "diverging"),
             f"loss with its part taken out of z − intact, a token, on prompts where it fires; "
             f"{about}"),
            ("words_lost", DIMS, words_lost, "Logit of its words lost without it",
             ("logits", "diverging"),
             f"mean logit of the {self.words.shape[1]} words that it promotes less that of all "
             f"words, intact − without it, where it fires; {about}"),
            evidence="causal",
        )  # fmt: skip
        results.add(
            "examples", ("described", "example", "query"), self.lanes, "Activation",
            "activation", "sequential", 0,
            convention=f"around the strongest tokens, one in 16 in a row; {about}",
        )  # fmt: skip

    def coordinates(self) -> dict[str, Any]:
        """Return the coordinates of the variables."""
        _, examples, width = self.lanes.shape
        reach = width // 2
        return {
            "described": [f"feature {at}" for at in self.features],
            "example": [f"example {at + 1}" for at in range(examples)],
            "query": np.arange(-reach, reach + 1),
            "token": (("described", "example", "query"), self.texts),
            "promotes": (DIMS, self.promotes),
            "suppresses": (DIMS, self.suppresses),
            "writer": (DIMS, self.writers),
        }


def describe(
    model: Model,
    sae: SparseAutoencoder,
    features: Sequence[int],
    prompts: Sequence[Sequence[int]],
    fires: Firing,
    reach: int,
    words: int,
    examples: int,
) -> Pages:
    """Describe features by their examples, their heads and their words."""
    rows = sae.decoder[list(features)]
    heads = sae.site.heads(model.heads)
    split = rows.view(len(rows), len(heads), -1)
    by_head = np.full((len(features), model.heads), np.nan)
    norms = split.double().square().sum(2)
    by_head[:, heads] = (norms / norms.sum(1, keepdim=True)).numpy()
    outputs = projections.read(model, ("o",)).of(sae.site.layer, "o")[heads].float()
    logits = read_out(model, torch.einsum("fhs,hsr->fr", split, outputs.to(split)))
    most, least = (side.topk(words, dim=1).indices for side in (logits, -logits))
    lanes, texts = _lanes(model, sae, features, prompts, fires, reach, examples)
    writers = [label((sae.site.layer, int(np.nanargmax(row)))) for row in by_head]
    promotes, suppresses = (
        [" · ".join(map(str.strip, model.to_str_tokens(row.tolist()))) for row in ids]
        for ids in (most, least)
    )
    return Pages(list(features), by_head, lanes, texts, most, promotes, suppresses, writers)


@torch.no_grad()
def _lanes(
    model: Model,
    sae: SparseAutoencoder,
    features: Sequence[int],
    prompts: Sequence[Sequence[int]],
    fires: Firing,
    reach: int,
    examples: int,
) -> tuple[Array, list[list[list[str]]]]:
    """Return activations and words around the examples of each feature."""
    width = 2 * reach + 1
    lanes = np.full((len(features), examples, width), np.nan)
    texts = [[[""] * width for _ in range(examples)] for _ in features]
    by_prompt: dict[int, list[tuple[int, int, Example]]] = {}
    for row, feature in enumerate(features):
        for rank, example in enumerate(fires.examples(feature)):
            by_prompt.setdefault(example.prompt, []).append((row, rank, example))
    for prompt, entries in by_prompt.items():
        ids = prompts[prompt]
        active = sae.encode(vectors(model, torch.tensor([list(ids)]), sae.site)[0])
        tokens = model.to_str_tokens(ids)
        for row, rank, example in entries:
            for at, window in enumerate(windows(prompts, example, reach)):
                if window is not None:
                    lanes[row, rank, at] = float(active[window, features[row]])
                    texts[row][rank][at] = tokens[window]
    return lanes, texts


@torch.no_grad()
def splice(
    model: Model,
    sae: SparseAutoencoder,
    pages: Pages,
    prompts: Sequence[Sequence[int]],
    rewrites: Sequence[splicing.Rewrite],
) -> tuple[Array, Array, Array]:
    """Return the loss under rewrites (prompt, rewrite), and what is lost without each feature.

    The first rewrite is the intact model. What is lost (prompt, described) is loss, and the logits
    of the feature's words where it fires; NaN on prompts where it does not.
    """
    count, first = len(pages.features), len(rewrites)
    fired = [
        sae.encode(vectors(model, torch.tensor([list(ids)]), sae.site)[0])[:, pages.features] > 0
        for ids in prompts
    ]
    ablated = [splicing.without(at, sae.encode, sae.decoder[at]) for at in pages.features]

    def of_top_tokens(number: int) -> ablation.Measure:
        def measure(logits: Tensor, rows: Sequence[int], _: object) -> Float[Tensor, " row"]:
            scores = []
            for row, row_logits in zip(rows, logits, strict=True):
                firing_logits = row_logits[fired[row][:, number].to(row_logits.device)].float()
                above = firing_logits[:, pages.words[number]].mean(1) - firing_logits.mean(1)
                scores.append(above.double().mean())
            return torch.stack(scores)

        return measure

    losses = splicing.losses(
        model, prompts, sae.site, [*rewrites, *ablated], [of_top_tokens(at) for at in range(count)]
    )
    lost = losses[0, :, first:] - losses[0, :, :1]
    of_own = [losses[1 + at, :, 0] - losses[1 + at, :, first + at] for at in range(count)]
    silent = ~np.array([rows.any(0).tolist() for rows in fired])
    lost[silent] = np.nan
    return losses[0, :, :first], lost, np.stack(of_own, 1)
