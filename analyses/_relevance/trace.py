"""One pass of a model on the text of a target: what the methods of token relevance read.

Queries, keys and values of every layer, after their rotation, and what the heads give; after one
backward pass also the gradients of the target's score in the outputs of heads and in the
embeddings. The weights of any rows follow from them, and their gradients too (``∂s/∂A_ij = dz_i ·
v_j``), so that memory grows with the text and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import Reader, run, unembedding_at
from headscope.probes.attention.residual_stream import watching
from headscope.probes.models.encoder_decoder import SELF

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from headscope.analyses._relevance.target import Target
    from headscope.probes.attention.interface import AttentionCall
    from headscope.probes.models.model import Model


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """The attention of one layer: its call, what heads give, and the score's gradient in that."""

    call: AttentionCall
    z: Float[Tensor, "1 head query value_size"]
    dz: Float[Tensor, "1 head query value_size"] | None

    @property
    def spec(self) -> AttentionSpec:
        """Attention specification of this layer."""
        return self.call.variant()


Passed = tuple[dict[int, LayerTrace], Tensor, Tensor | None, float]
"""Layers, what enters the first block, the gradient in that, and the score."""


class Trace:
    """The passes that explain one target; each is made when it is first asked for."""

    reader: type[Reader] = Reader
    """What answers the attention calls of the passes."""

    def __init__(
        self, model: Model, target: Target, known: dict[Callable[..., Any], Any] | None = None
    ) -> None:
        if model.reads != "tokens" or model.attention != SELF:
            raise NotApplicable(
                f"model: token relevance follows one text, and {model.name} reads {model.reads} "
                f"with {model.attention} attention"
            )
        model.check_predicts()
        self.model, self.target = model, target
        self._known: dict[Callable[..., Any], Any] = {} if known is None else known

    def of_model(self, measure: Callable[[Model], T]) -> T:
        """Return what is measured of the model, once for all traces that share ``known``."""
        if measure not in self._known:
            self._known[measure] = measure(self.model)
        value: T = self._known[measure]
        return value

    @cached_property
    def layers(self) -> dict[int, LayerTrace]:
        """Return every layer that has attention weights, without gradients."""
        return self._pass(gradients=False)[0]

    @cached_property
    def graded_layers(self) -> dict[int, LayerTrace]:
        """Return every layer that has attention weights, with ``dz``."""
        return self._backward[0]

    @property
    def embedding(self) -> Float[Tensor, "token residual"]:
        """Return what enters the first block."""
        return self._backward[1]

    @property
    def embedding_gradient(self) -> Float[Tensor, "token residual"]:
        """Return the gradient of the score in what enters the first block."""
        gradient = self._backward[2]
        assert gradient is not None
        return gradient

    @property
    def score(self) -> float:
        """Return the score of the text as it is, in logits."""
        return self._backward[3]

    @cached_property
    def _backward(self) -> Passed:
        return self._pass(gradients=True)

    def _pass(self, *, gradients: bool) -> Passed:
        model, target = self.model, self.target
        entered: list[Tensor] = []
        calls: dict[int, tuple[AttentionCall, Tensor]] = {}

        def enter(boundary: int, stream: Tensor) -> Tensor | None:
            if boundary:
                return None
            entered.append(stream.detach().requires_grad_(gradients))
            return entered[0]

        def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
            still = {name: getattr(call, name).detach() for name in ("query", "key", "value")}
            calls[call.layer] = replace(call, **still), z

        ids, positions = torch.tensor([target.ids]), torch.tensor([[target.at]])
        reader = self.reader(Request(stats=()), (), take)
        with torch.set_grad_enabled(gradients), watching(model, enter):
            with unembedding_at(model, positions) as finish:
                logits = finish(run(model, ids, reader, head=True))[:, 0]
            score = target.score(logits)
        slopes: list[Tensor | None] = [None] * (len(calls) + 1)
        if gradients:
            outputs = [z for _, z in calls.values()]
            slopes = list(torch.autograd.grad(score.sum(), [*outputs, entered[0]]))
        layers = {
            layer: LayerTrace(call, z.detach(), slope)
            for (layer, (call, z)), slope in zip(calls.items(), slopes[:-1], strict=True)
        }
        last = slopes[-1]
        return (
            dict(sorted(layers.items())),
            entered[0].detach()[0],
            None if last is None else last[0],
            float(score.detach()),
        )
