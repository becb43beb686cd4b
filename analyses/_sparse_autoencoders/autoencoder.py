"""A sparse autoencoder: vectors as sums of few directions, by one of four activations.

``f = σ((x − b_dec) W_enc + b_enc)`` and ``x̂ = f W_dec + b_dec``. What σ keeps of the scores:
``relu`` those above 0; ``topk`` the k largest of a vector; ``batchtopk`` in training the k largest
a vector on average over a batch, afterwards those above one threshold; ``jumprelu`` those above a
threshold of each feature. All of them are 0 or more.

Sources: Bricken et al., Towards Monosemanticity (2023); Gao et al. (2406.04093); Bussmann et al.
(2412.06410); Rajamanoharan et al. (2407.14435); on head outputs, Kissane et al. (2406.17759).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.analyses._sparse_autoencoders.site import Site
from headscope.kernels.errors import InvalidInput

KINDS = ("relu", "topk", "batchtopk", "jumprelu")

Vectors = Float[Tensor, "... size"]
Features = Float[Tensor, "... feature"]


class SparseAutoencoder(nn.Module):
    """A dictionary of directions with its encoder; ``about`` says where it comes from."""

    def __init__(
        self,
        kind: str,
        size: int,
        features: int,
        site: Site,
        *,
        k: int = 0,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InvalidInput(f"kind: no {kind!r}; choose one of {', '.join(KINDS)}")
        if kind == "topk" and not 1 <= k <= features:
            raise InvalidInput(f"k: {k} of {features} features; give 1 to {features}")
        self.kind, self.k, self.site, self.about = kind, k, site, about or {}
        self.encoder = nn.Parameter(torch.zeros(size, features))
        self.encoder_bias = nn.Parameter(torch.zeros(features))
        self.decoder = nn.Parameter(torch.zeros(features, size))
        self.decoder_bias = nn.Parameter(torch.zeros(size))
        self.threshold = nn.Parameter(torch.zeros(features))

    @property
    def features(self) -> int:
        """Number of directions."""
        return len(self.decoder)

    @property
    def size(self) -> int:
        """Length of a vector."""
        return len(self.decoder_bias)

    def scores(self, vectors: Vectors) -> Features:
        """Return what the activation sees of every feature."""
        return (vectors - self.decoder_bias) @ self.encoder + self.encoder_bias

    def encode(self, vectors: Vectors) -> Features:
        """Return how strongly each feature fires, as after training."""
        scores = self.scores(vectors)
        if self.kind == "topk":
            return top_k(scores, self.k)
        return torch.relu(scores) * (scores > torch.relu(self.threshold))

    def decode(self, active: Features) -> Vectors:
        """Return the vector that the features stand for."""
        return active @ self.decoder + self.decoder_bias

    def forward(self, vectors: Vectors) -> Vectors:
        """Return the reconstruction."""
        return self.decode(self.encode(vectors))

    def check(self, heads: int, size: int) -> None:
        """Refuse a model whose vectors have another length."""
        width = self.site.width(heads, size)
        if width != self.size:
            raise InvalidInput(
                f"sae: it reads vectors of {self.size} numbers, and {self.site} of this model has "
                f"{width}; give the model that it was trained on"
            )


def top_k(scores: Features, k: int) -> Features:
    """Keep the k largest scores of every vector, where they are above 0.

    >>> top_k(torch.tensor([[3.0, -1.0, 2.0, 1.0]]), 2).tolist()
    [[3.0, 0.0, 2.0, 0.0]]
    """
    values, indices = scores.topk(k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, indices, torch.relu(values))


def batch_top_k(scores: Float[Tensor, "example feature"], k: int) -> Features:
    """Keep the k largest scores a vector on average over a batch, where they are above 0.

    >>> batch_top_k(torch.tensor([[3.0, 2.0], [1.0, 0.5]]), 1).tolist()
    [[3.0, 2.0], [0.0, 0.0]]
    """
    return top_k(scores.flatten(), k * len(scores)).view_as(scores)


class _Jump(torch.autograd.Function):
    """``s · H(s − θ)``, or with ``step`` H(s − θ) alone, with a rectangular kernel for dθ.

    The gradients in θ are pseudo-derivatives: −θ/ε K((s − θ)/ε), and −1/ε K((s − θ)/ε) of the
    step, which passes none to the scores (2407.14435, equations 11 and 12).
    """

    @staticmethod
    def forward(context: Any, scores: Tensor, threshold: Tensor, width: float, step: bool) -> Any:
        context.save_for_backward(scores, threshold)
        context.width, context.step = width, step
        above = scores > threshold
        return above.to(scores) if step else scores * above

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        scores, threshold = context.saved_tensors
        kernel = ((scores - threshold).abs() < context.width / 2).to(scores) / context.width
        height = 1.0 if context.step else threshold
        in_scores = None if context.step else gradient * (scores > threshold)
        return in_scores, -(height * kernel * gradient).sum(0), None, None


def jump(
    scores: Float[Tensor, "example feature"], threshold: Float[Tensor, " feature"], width: float
) -> Features:
    """Return the scores above their threshold, with a kernel of some width for its gradient."""
    active: Tensor = _Jump.apply(scores, threshold, width, False)  # type: ignore[no-untyped-call]
    return active


def step(
    scores: Float[Tensor, "example feature"], threshold: Float[Tensor, " feature"], width: float
) -> Features:
    """Return 1 where a score is above its threshold, whose sum is L0, with the same kernel."""
    fired: Tensor = _Jump.apply(scores, threshold, width, True)  # type: ignore[no-untyped-call]
    return fired
