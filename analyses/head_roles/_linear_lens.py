"""Linear lenses: maps from a vector inside a model to its prediction, judged on other prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analyses._interventions.next_token_loss import tokens
from headscope.analyses._measurements.residual_writes import same
from headscope.analyses._measurements.unembedding import final_norm
from headscope.analyses.head_roles._prompt_folds import Folds
from headscope.kernels.errors import NotApplicable, ResourceLimit
from headscope.probes.attention.forward import logits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headscope.probes.models.model import Model

CELLS = 2**25
"""Probabilities of judged positions that are held (128 MB)."""
ROWS = 2**23
"""Logits that are computed at once."""
PLAUSIBLE = 0.01
"""Least probability of a word that is compared, over the largest of the lens."""


def predicted(
    features: Float[Tensor, "position head size"],
    targets: Float[Tensor, "position channel"],
    folds: Folds,
    judged: Int[Tensor, " judged"],
    ridge: float,
) -> Float[Tensor, "judged head channel"]:
    """Predict by ridge regression how targets differ from their mean, on folds not seen.

    ``ridge`` is the penalty over the mean variance of a head's features.
    """
    features, targets = features.double(), targets.double()
    predictions = torch.empty(len(judged), features.shape[1], targets.shape[1])
    parts = [_moments(features[rows], targets[rows]) for rows in _by_fold(folds.fold)]
    sums = [torch.stack(part).sum(0) for part in zip(*parts, strict=True)]
    for fold, part in enumerate(parts):
        count, feature_mean, target_mean, square, product = (
            a - b for a, b in zip(sums, part, strict=True)
        )
        feature_mean, target_mean = feature_mean / count, target_mean / count
        square = square - count * feature_mean[:, :, None] * feature_mean[:, None]
        product = product - count * feature_mean[:, :, None] * target_mean
        variance = square.diagonal(dim1=1, dim2=2).mean(-1)
        # A head that writes one thing alone has no variance, and its map is 0.
        penalty = torch.where(variance > 0, ridge * variance, 1.0)
        square = square + penalty[:, None, None] * torch.eye(square.shape[-1])
        map_ = torch.linalg.solve(square, product)
        in_fold = (folds.fold[judged] == fold).nonzero().flatten()
        centred = features[judged[in_fold]] - feature_mean
        predictions[in_fold] = torch.einsum("phs,hsc->phc", centred, map_).float()
    return predictions


def _by_fold(fold: Int[Tensor, " position"]) -> list[Tensor]:
    return [(fold == number).nonzero().flatten() for number in range(int(fold.max()) + 1)]


def _moments(features: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.tensor(float(len(features)), dtype=torch.float64),
        features.sum(0),
        targets.sum(0),
        torch.einsum("phs,pht->hst", features, features),
        torch.einsum("phs,pc->hsc", features, targets),
    )


@dataclass(frozen=True, eq=False)
class Judged:
    """Distance of a lens to the model's prediction, and the tokens it predicts.

    ``distance`` is the KL divergence of the lens from the model (nats, 0 or more) and ``agrees``
    the share of positions where both have the same first word (0 to 1), means over the judged
    positions of a prompt; ``first`` is the first word at each position. ``lift`` is by how much a
    lens raises a word over the mean prediction (`lift`), mean over the judged positions.
    """

    distance: Float[Tensor, " prompt"]
    agrees: Float[Tensor, " prompt"]
    first: Int[Tensor, " judged"]
    lift: Float[Tensor, " word"] | None


class Judge:
    """The model's predictions at the judged positions, and the distance of lenses to them.

    ``final`` is the residual stream at the end, behind the final norm, at all positions;
    ``average`` are the log-probabilities of the mean prediction over the judged positions of the
    other folds (fold, word).
    """

    @torch.no_grad()
    def __init__(
        self, model: Model, capture: xr.Dataset, folds: Folds, positions: int, seed: int
    ) -> None:
        module: Any = model.module
        most = CELLS // model.vocabulary // capture.sizes["prompt"]
        if not most:
            raise ResourceLimit(
                f"prompts: {capture.sizes['prompt']} times {model.vocabulary} words are too many "
                f"predictions to hold; give at most {CELLS // model.vocabulary} prompts"
            )
        self.model, self.folds = model, folds
        self.judged = folds.draw(min(positions, most), seed)
        self.fold = folds.fold[self.judged]
        self.unembedding, self.norm = module.get_output_embeddings(), final_norm(model)
        if self.unembedding is None:
            raise NotApplicable(f"model: {model.name} has no unembedding, so no vocabulary")
        self.final = self.normed(stream(capture, folds, -1))
        self.rows = max(1, ROWS // model.vocabulary)
        parts = self._parts(self.final[self.judged])
        log_chances = torch.cat([self.logits(part).log_softmax(-1) for part in parts])
        self._check(capture, log_chances)
        self.chances = log_chances.exp()
        self.entropy = -torch.einsum("rw,rw->r", self.chances, log_chances)
        self.best = log_chances.argmax(-1)
        # By logarithms, so that a word that no prediction has is not impossible.
        other_folds = (log_chances[self.fold != fold] for fold in range(folds.count))
        self.average = torch.stack([rows.logsumexp(0).log_softmax(-1) for rows in other_folds])

    def normed(self, vectors: Float[Tensor, "*batch channel"]) -> Float[Tensor, "*batch channel"]:
        """Send vectors through the final norm."""
        result: Tensor = self.norm(vectors.to(self.model.device, self.model.dtype))
        return result.detach().float().cpu()

    @torch.no_grad()
    def logits(self, rows: Float[Tensor, "row channel"]) -> Float[Tensor, "row word"]:
        """Unembed what is behind the final norm."""
        result: Tensor = self.unembedding(rows.to(self.model.device, self.model.dtype))
        return result.float().cpu()

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, self.rows)

    def _check(self, capture: xr.Dataset, log_chances: Float[Tensor, "judged word"]) -> None:
        """Refuse a model whose logits are not the unembedding of the final stream."""
        if getattr(self.model.module.config, "final_logit_softcapping", None):
            return
        ids = torch.tensor(tokens(capture)[:1])
        first_rows = (self.folds.prompt[self.judged] == 0).nonzero().flatten()
        positions = self.judged[first_rows]  # the first prompt stands first
        expected = (
            logits(self.model, ids, positions=positions[None])[0].float().cpu().log_softmax(-1)
        )
        same(expected, log_chances[first_rows], "the unembedding")

    def trained(self, rows: Float[Tensor, "judged channel"]) -> Judged:
        """Judge a lens whose logits are added to those of the mean prediction."""
        zero_logits = self.logits(torch.zeros(1, rows.shape[1]))
        parts = zip(self._parts(rows), self._parts(self.fold), strict=True)
        return self._judged(
            ((self.logits(part) - zero_logits).add_(self.average[fold]), self.average[fold])
            for part, fold in parts
        )

    def untrained(self, rows: Float[Tensor, "judged channel"]) -> Judged:
        """Judge vectors of the residual stream through final norm and unembedding."""
        return self._judged((self.logits(self.normed(part)), None) for part in self._parts(rows))

    def constant(self) -> Judged:
        """Judge the mean prediction of the other folds."""
        return self._judged((self.average[fold], None) for fold in self._parts(self.fold))

    def _judged(
        self, parts: Iterable[tuple[Float[Tensor, "row word"], Float[Tensor, "row word"] | None]]
    ) -> Judged:
        """Judge logits, in parts; beside them the mean prediction that they are compared with."""
        distances, firsts, lifts, start = [], [], [], 0
        for part, mean in parts:
            rows = slice(start, start + len(part))
            # Σ p (log p − log q), without an array of log q.
            expected = torch.einsum("rw,rw->r", self.chances[rows], part)
            distance = part.logsumexp(-1) - expected - self.entropy[rows]
            distances.append(distance.clamp_min(0))  # below 0 by rounding alone
            firsts.append(part.argmax(-1))
            if mean is not None:
                lifts.append(lift(part, mean).sum(0))
            start = rows.stop
        first = torch.cat(firsts)
        return Judged(
            self.folds.by_prompt(torch.cat(distances), self.judged),
            self.folds.by_prompt((first == self.best).double(), self.judged),
            first,
            torch.stack(lifts).sum(0) / len(first) if lifts else None,
        )


def lift(
    logits: Float[Tensor, "row word"], mean: Float[Tensor, "row word"]
) -> Float[Tensor, "row word"]:
    """Return by how much a lens raises words over the mean prediction (nats, 0 or more).

    The log probability of the lens less ``mean``; 0 for a word that is lowered, and for one with
    less than a hundredth of the lens's largest probability: without that bar the rarest words are
    raised most, whatever is read.

    Source: Li et al., Contrastive Decoding (2210.15097).
    """
    least = logits.max(-1, keepdim=True).values + math.log(PLAUSIBLE)
    raised = (logits - mean).sub_(logits.logsumexp(-1, keepdim=True)).clamp_min_(0)
    return raised.masked_fill_(logits < least, 0)


def stream(capture: xr.Dataset, folds: Folds, boundary: int) -> Float[Tensor, "position channel"]:
    """Return the residual stream at a boundary, −1 the last."""
    kept = capture["resid"].isel(boundary=boundary)
    return folds.rows(kept.transpose("prompt", "query", "channel")).float()
