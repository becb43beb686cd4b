"""The linear way from the heads of a model to its logits, the scales of its norms frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.analyses._measurements.residual_writes import (
    Norm,
    head_writes,
    read_norm,
    through,
)
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.api import Request, push
from headscope.probes.attention import projections as weights
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


@dataclass
class QuestionCache:
    """Activations at the questions, in float64: streams by boundary, the others by layer."""

    streams: list[Tensor] = field(default_factory=list)
    z: dict[int, Tensor] = field(default_factory=dict)
    scales: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))


class Readout:
    """The linear way from the heads to the logits of a model, the scales of its norms frozen."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.writes = head_writes(model)
        self.last = final_norm(model)
        module: Any = model.module
        self.unembedding = module.get_output_embeddings()
        self.table = self.unembedding.weight.detach().cpu()
        self.norm = read_norm(self.last, model, self.table.shape[1])
        bias = getattr(self.unembedding, "bias", None)
        self.shift = None if bias is None else bias.detach().double().cpu()
        self.capped = bool(getattr(model.module.config, "final_logit_softcapping", None))
        self.outwards = weights.read(model, ("o",))

    def before_norm(
        self, direction: Float[Tensor, "question residual"], cache: QuestionCache
    ) -> Float[Tensor, "question residual"]:
        """Map directions of the unembedding to those before the last norm."""
        last = cache.streams[-1]
        scale = self.norm.scale(last, through(self.last, self.model, last))
        return self.norm.transposed(direction) * scale[:, None]

    def before_heads(
        self, towards: Float[Tensor, "question residual"], layer: int, cache: QuestionCache
    ) -> Float[Tensor, "question head size"]:
        """Map directions of the residual stream to those of the outputs of a layer's heads."""
        write = self.writes[layer]
        inner = towards * write.factor
        if write.norm is not None:
            inner = write.norm.transposed(inner) * cache.scales[layer][:, None]
        return torch.einsum("hsr,qr->qhs", self.outwards.of(layer, "o"), inner)

    def writes_of(
        self, layer: int, cache: QuestionCache
    ) -> Float[Tensor, "question head residual"]:
        """Return what a layer's heads write into the residual stream."""
        write = self.writes[layer]
        vectors = torch.einsum("qhs,hsr->qhr", cache.z[layer], self.outwards.of(layer, "o"))
        if write.norm is not None:
            vectors = write.norm.linear(vectors) * cache.scales[layer][:, None, None]
        return vectors * write.factor

    def read_question(self, ids: Sequence[int], at: int) -> QuestionCache:
        """Run the model on one text, and keep the maps and values of one question, too."""
        return self.read(torch.tensor([list(ids)]), torch.tensor([[0], [at]]), maps=True)

    def read(
        self, ids: Int[Tensor, "batch token"], questions: Int[Tensor, "2 question"],
        *, maps: bool = False,
    ) -> QuestionCache:  # fmt: skip
        """Run the model and keep its activations at the questions; of one question, maps too."""
        row, at = questions
        cache = QuestionCache()

        def see(boundary: int, stream: Tensor) -> None:
            cache.streams.append(stream[row, at].double().cpu())

        def take(call: Any, outputs: Any, values: Tensor) -> None:
            cache.z[call.layer] = values[row, :, at].double().cpu()
            if maps:
                one_hot = torch.zeros(1, 1, values.shape[2], 1, device=values.device)
                one_hot[0, 0, at] = 1
                rows = push(one_hot, call.query, call.key, call.variant())[0, ..., 0]
                cache.maps[call.layer] = rows.double().cpu(), call.value[0].double().cpu()

        def freeze(layer: int, norm: Norm) -> Any:
            def hook(part: nn.Module, args: Any, result: Tensor) -> None:
                before, after = (states[row, at].double().cpu() for states in (args[0], result))
                cache.scales[layer] = norm.scale(before, after)

            return hook

        def uncap(part: nn.Module, args: Any, result: Tensor) -> None:
            cache.logits = result[row, at].double().cpu()

        hooks = [
            write.module.register_forward_hook(freeze(layer, write.norm))
            for layer, write in self.writes.items()
            if write.module is not None and write.norm is not None
        ]
        if self.capped:
            hooks.append(self.unembedding.register_forward_hook(uncap))
        try:
            with torch.no_grad(), watching(self.model, see):
                output = run(self.model, ids, Reader(Request(stats=()), (), take), head=True)
        finally:
            for hook in hooks:
                hook.remove()
        if not self.capped:
            cache.logits = output[row, at].double().cpu()
        return cache
