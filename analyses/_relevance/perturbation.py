"""The effect of replacing tokens on the answer: one at a time, or in the order of a relevance.

A token is replaced by another one of the same prompts, drawn at random; special tokens of the
tokenizer stay, since the model knows no text without them. Deletion replaces the most relevant
tokens first, and a faithful order loses the answer early; insertion restores the most relevant ones
first in a text of replaced ones, and a faithful order regains it early.

Sources: Samek et al., Evaluating the Visualization of What a Deep Neural Network has Learned
(1509.06321); Petsiuk et al., RISE (1806.07421); DeYoung et al., ERASER (1911.03429).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.analyses._relevance.target import Target
    from headscope.analyses._stats.bootstrap import Array
    from headscope.probes.models.model import Model

# Tokens in one forward pass.
TOKENS = 4096


@dataclass(eq=False)
class Perturbation:
    """A target with the replacements of its tokens, and the scores measured so far.

    Attributes
    ----------
    replacements
        Drawn in place of the tokens (draw, token); at tokens that stay, the tokens themselves.
    free
        Which tokens can be replaced (token,).
    """

    model: Model
    target: Target
    replacements: NDArray[np.int64]
    free: NDArray[np.bool_]
    known_scores: dict[bytes, float] = field(default_factory=dict)

    def scores(self, replaced: NDArray[np.bool_]) -> Array:
        """Return the target's score with sets of tokens replaced (set, token), mean over draws."""
        replaced = replaced & self.free
        keys = [mask.tobytes() for mask in replaced]
        fresh = {
            key: row
            for key, row in zip(keys, replaced, strict=True)
            if key not in self.known_scores
        }
        if fresh:
            masks = np.stack(list(fresh.values()))
            ids = np.asarray(self.target.ids)
            rows = np.where(masks[:, None], self.replacements[None], ids).reshape(-1, len(ids))
            size = max(1, TOKENS // len(ids))
            values = np.concatenate(
                [
                    self.target.scores(self.model, torch.from_numpy(rows[at : at + size]))
                    .double().cpu().numpy()
                    for at in range(0, len(rows), size)
                ]
            )  # fmt: skip
            means = values.reshape(len(masks), -1).mean(1)
            self.known_scores |= dict(zip(fresh, means.tolist(), strict=True))
        return np.array([self.known_scores[key] for key in keys])

    def effect(self) -> Array:
        """Return what is lost when each token alone is replaced (token,), NaN where it stays."""
        alone = np.eye(len(self.target.ids), dtype=bool)
        (intact,) = self.scores(np.zeros((1, len(alone)), dtype=bool))
        return np.where(self.free, intact - self.scores(alone), np.nan)

    def ends(self) -> tuple[float, float]:
        """Return the score of the text as it is, and with every token replaced."""
        none = np.zeros(len(self.target.ids), dtype=bool)
        intact, empty = self.scores(np.stack([none, ~none]))
        return float(intact), float(empty)

    def curves(self, order: NDArray[np.intp], steps: int) -> tuple[Array, Array]:
        """Return the scores with growing shares of an order replaced, and brought back (step,).

        ``order`` lists the free tokens, most relevant first. Steps divide it evenly; the first has
        none of it, the last all of it.
        """
        counts = np.round(np.linspace(0, len(order), steps + 1)).astype(int)
        sets = np.zeros((len(counts), len(self.free)), dtype=bool)
        for row, count in enumerate(counts):
            sets[row, order[:count]] = True
        return self.scores(sets), self.scores(~sets)


def perturb(
    model: Model, target: Target, pool: Sequence[int], draws: int, generator: np.random.Generator
) -> Perturbation:
    """Draw replacements of every token of a target from a pool of tokens."""
    special = set(getattr(model.tokenizer, "all_special_ids", None) or ())
    free = np.array([token not in special for token in target.ids])
    replacements = draw_replacements(
        target.ids, [token for token in pool if token not in special], draws, generator,
        np.flatnonzero(free),
    )  # fmt: skip
    return Perturbation(model, target, replacements, free)


def draw_replacements(
    ids: Sequence[int],
    pool: Sequence[int],
    draws: int,
    generator: np.random.Generator,
    positions: Iterable[int] | None = None,
) -> NDArray[np.int64]:
    """Draw tokens of a pool that differ from those at some positions of a text (draw, token).

    At all positions, unless some are given; the text is unchanged elsewhere.
    """
    replacements = np.tile(np.asarray(ids, dtype=np.int64), (draws, 1))
    candidates = np.unique(pool)
    for at in range(len(ids)) if positions is None else positions:
        choice = candidates[candidates != ids[at]]
        if len(choice) == 0:
            raise NotApplicable(
                "prompts: all tokens are the same, so none can be replaced by another"
            )
        replacements[:, at] = generator.choice(choice, size=draws)
    return replacements


def order_of(relevance: Array, free: NDArray[np.bool_]) -> NDArray[np.intp]:
    """List the free tokens, most relevant first; of ties the earlier one."""
    positions = np.flatnonzero(free)
    return positions[np.argsort(-relevance[positions], kind="stable")]


def areas(
    perturbation: Perturbation, orders: Mapping[str, NDArray[np.intp]], steps: int
) -> dict[str, tuple[float, float]]:
    """Return the areas under the deletion and the insertion curve of every order, in logits.

    Above the score of the text with every token replaced; the trapezoid rule over the share of
    tokens, so that both lie between 0 and what the intact text has where curves are monotonic.
    """
    _, empty = perturbation.ends()
    by_name = {}
    for name, order in orders.items():
        deleted, inserted = perturbation.curves(order, steps)
        by_name[name] = tuple(
            float(np.trapezoid(curve - empty, dx=1 / steps)) for curve in (deleted, inserted)
        )
    return by_name  # type: ignore[return-value]
