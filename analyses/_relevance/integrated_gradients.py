"""Integrated gradients: gradients integrated from a baseline of equal tokens to the text.

``(x − x̄) · ∫₀¹ ∂s/∂x dα`` at ``x̄ + α (x − x̄)``; the baseline x̄ is the mean of the text's own
embeddings (at the embedding of zero, norms divide by nothing, and no number of points suffices).
Parts of the path where the trapezoid rule misses the change of the score are halved, until all of
them miss at most `TOLERANCE` of it. Where `POINTS` are not enough, the method refuses and states
the completeness error: on long texts of deep models, after a few points. Source: Sundararajan et
al., Axiomatic Attribution for Deep Networks (1703.01365); baselines: Sturmfels et al., Visualizing
the Impact of Feature Attribution Baselines (2020).
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import percent
from headscope.probes.attention.forward import Reader, run, unembedding_at
from headscope.probes.attention.residual_stream import watching

SIGNED = True

TOLERANCE, START, POINTS = 0.2, 8, 256
# Tokens that are followed at once, and in all: a long text gets fewer points.
TOKENS, BUDGET = 2048, 16384


def relevance(trace: Trace) -> Array:
    """Return the integrated gradient of every token (token,), logits."""
    integral, missing = integrate(trace)
    if missing > TOLERANCE:
        raise NotApplicable(
            f"model: integrated gradients of {trace.model.name} miss {percent(missing)} of the "
            "score's change, and more points on the way would cost too much; use another method"
        )
    return integral


def integrate(trace: Trace, points: int = POINTS) -> tuple[Array, float]:
    """Return the integral (token,), and the completeness error.

    The error is a share of what the score changes by on the way, or of the score where that is
    more; errors of parts do not cancel in it.
    """
    points = min(points, max(4 * START, BUDGET // len(trace.target.ids)))
    path = trace.embedding - trace.embedding.mean(0)
    evaluated: dict[float, tuple[float, Array]] = {}

    def visit(shares: list[float]) -> None:
        size = max(1, TOKENS // len(path))
        for at in range(0, len(shares), size):
            chunk = shares[at : at + size]
            scores, slopes = _at(trace, path, chunk)
            parts = torch.einsum("std,td->st", slopes, path).double().cpu().numpy()
            evaluated.update({share: (score, part) for share, score, part
                              in zip(chunk, scores.tolist(), parts, strict=True)})  # fmt: skip

    visit(np.linspace(0, 1, START + 1).tolist())
    while True:
        ends = sorted(evaluated)
        parts = list(pairwise(ends))
        sums = [(evaluated[a][1] + evaluated[b][1]) * (b - a) / 2 for a, b in parts]
        missed = [abs(evaluated[b][0] - evaluated[a][0] - area.sum())
                  for (a, b), area in zip(parts, sums, strict=True)]  # fmt: skip
        scale = max(abs(evaluated[1.0][0] - evaluated[0.0][0]), abs(trace.score), 1e-12)
        remaining = points - len(evaluated)
        missing = sum(missed) / scale
        # A long text may have few points: what they will miss shows after the first.
        hopeless = points < POINTS and missing * len(evaluated) / points > 2 * TOLERANCE
        if missing <= TOLERANCE or remaining <= 0 or hopeless:
            return np.sum(sums, axis=0), missing
        # The worst parts, a batch or so at a time.
        worst = np.argsort(missed)[::-1][: min(remaining, max(START, TOKENS // len(path)))]
        visit([sum(parts[at]) / 2 for at in worst if missed[at] > 0.5 * missed[worst[0]]])


def _at(trace: Trace, path: Tensor, shares: list[float]) -> tuple[Tensor, Tensor]:
    """Return score and gradient in the embeddings at some places of the way."""
    model, target = trace.model, trace.target
    back = 1 - torch.tensor(shares).to(path)
    stream = (trace.embedding - back[:, None, None] * path).requires_grad_(True)
    ids = torch.tensor([target.ids]).expand(len(shares), -1)
    positions = torch.full((len(shares), 1), target.at)

    def enter(boundary: int, entered: Tensor) -> Tensor | None:
        return None if boundary else stream

    with torch.enable_grad(), watching(model, enter), unembedding_at(model, positions) as finish:
        logits = finish(run(model, ids, Reader(Request(stats=())), head=True))[:, 0]
        score = target.score(logits)
    return score.detach(), torch.autograd.grad(score.sum(), stream)[0]
