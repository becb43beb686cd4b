"""Link probe: a linear classifier that finds a query's key from attention weights alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import Array

Right = NDArray[np.bool_]


class LinkProbe:
    """Logistic regression on the weights of all heads; the key of the largest score is the answer.

    Trained on the weights of the candidates of every link (candidate, ...) and which of them are
    linked (candidate,); heads without a number (no attention) are left out. Of the ``negatives`` of
    a link one half are those with the largest weight of any head, the others drawn at random.
    """

    def __init__(
        self, features: Sequence[Array], right: Sequence[Right], negatives: int, seed: int
    ) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rng = np.random.default_rng(seed)
        self.shape = features[0].shape[1:]
        self.present = ~np.isnan(features[0].reshape(len(features[0]), -1)).any(0)
        rows, truth = [], []
        for weights, flags in zip(features, right, strict=True):
            flat = self._flat(weights)
            wrong = np.flatnonzero(~flags)
            # Tokens that some head attends to are few, and the ones that can be mistaken.
            wrong = wrong[np.argsort(-flat[wrong].max(-1), kind="stable")]
            hard, easy = np.split(wrong, [negatives // 2])
            rest = min(negatives - len(hard), len(easy))
            drawn = rng.choice(easy, rest, replace=False)
            chosen = np.concatenate([np.flatnonzero(flags), hard, drawn])
            rows.append(flat[chosen])
            truth.append(flags[chosen])
        self.model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.model.fit(np.concatenate(rows), np.concatenate(truth))

    def hits(self, features: Sequence[Array], right: Sequence[Right]) -> Array:
        """Return for every link whether a right key scores highest (link,): 1 or 0."""
        scores = [self.model.decision_function(self._flat(weights)) for weights in features]
        return np.asarray(
            [float(flags[score.argmax()]) for score, flags in zip(scores, right, strict=True)]
        )

    @property
    def coefficients(self) -> Array:
        """Log odds a standard deviation of every weight; NaN where there is no attention."""
        grid = np.full(self.present.shape, np.nan)
        grid[self.present] = self.model[-1].coef_[0]
        return grid.reshape(self.shape)

    def _flat(self, features: Array) -> Array:
        return features.reshape(len(features), -1)[:, self.present]


def shuffled(right: Sequence[Right], seed: int) -> list[Right]:
    """Draw as many other keys at random as are linked."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(flags) for flags in right]


def head_hits(features: Sequence[Array], right: Sequence[Right]) -> Array:
    """Return whether each head alone gives a right key the largest weight (link, ...).

    Equal weights share the hit; NaN where there is no attention.

    >>> weights = np.array([[0.1, 0.5], [0.9, 0.5]])
    >>> head_hits([weights], [np.array([False, True])]).tolist()
    [[1.0, 0.5]]
    """
    hits = []
    for values, flags in zip(features, right, strict=True):
        # float32 logits: weights this near are equal.
        best = values >= values.max(0) - 1e-7
        hits.append(np.where(np.isnan(values[0]), np.nan, best[flags].sum(0) / best.sum(0).clip(1)))
    return np.stack(hits)


def fixed_offset(distances: Sequence[NDArray[np.int64]]) -> int:
    """Return the distance from query to right key that the most links have.

    >>> fixed_offset([np.array([3]), np.array([1, 3])])
    3
    """
    values, counts = np.unique(np.concatenate(distances), return_counts=True)
    return int(values[counts.argmax()])
