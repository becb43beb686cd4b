"""Direct logit attribution: what each component writes to the answer, the norms' scales frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.analyses._interventions.ablation import Array, encode_task
from headscope.analyses._measurements.residual_writes import (
    Norm,
    read_norm,
    same,
    through,
    written,
)
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.api import Request, push
from headscope.probes.attention import projections as weights
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

TOKENS = 8192


@dataclass(frozen=True)
class Parts:
    """What each component writes towards the answer of every prompt, in logits.

    Attributes
    ----------
    heads
        (prompt, layer, head), NaN in layers without an attention map.
    rest
        What else a layer writes: its MLP and the biases (prompt, layer).
    embedding, bias
        (prompt,): of the embeddings, and of the last norm and the unembedding.
    logit
        What the model itself gives (prompt,), before a soft cap; all parts sum to it.
    heads_before_norm, stream
        The same of heads without the last norm (prompt, layer, head), parts of what the residual
        stream gives without it (prompt,).
    capped
        Whether the model caps its logits.
    """

    heads: Array
    rest: Array
    embedding: Array
    bias: Array
    logit: Array
    heads_before_norm: Array
    stream: Array
    capped: bool

    def total(self) -> Array:
        """Sum all parts (prompt,)."""
        heads = np.nansum(self.heads, axis=(1, 2))
        return np.asarray(heads + self.rest.sum(1) + self.embedding + self.bias)


def attribute(model: Model, task: Task | EncodedTask) -> Parts:
    """Split the logit difference of every prompt into what components write directly.

    ``Σ z_h W_O^h`` of the heads, what else each layer adds to the residual stream, and the
    embeddings, each through the last norm with its scale frozen, the unembedding and ``answer −
    wrong``; a norm between the heads and the stream is frozen too. Without wrong answers the mean
    over the vocabulary stands in their place. Where the model caps its logits, they are those
    before the cap.
    """
    encoded = encode_task(model, task)
    reads = Readout(model)
    count, layers = len(encoded.ids), model.layers
    heads, before = (np.full((count, layers, model.heads), np.nan) for _ in range(2))
    rest = np.zeros((count, layers))
    sums = {key: np.zeros(count) for key in ("in", "bias", "all", "stream")}
    for rows in batches(encoded.ids, TOKENS):
        asked = [encoded.questions[row] for row in rows]
        flat = [(place, one) for place, each in enumerate(asked) for one in each]
        where = torch.tensor([(place, one.at) for place, one in flat]).T
        found = reads.read(torch.tensor([encoded.ids[row] for row in rows]), where)
        direction = torch.stack([_difference(reads.table, one) for _, one in flat])
        towards = reads.before_norm(direction, found)

        share = torch.zeros(len(rows), len(flat), dtype=torch.float64)
        for at, (place, _) in enumerate(flat):
            share[place, at] = 1 / len(asked[place])
        for layer in range(layers):
            change = ((found.streams[layer + 1] - found.streams[layer]) * towards).sum(-1)
            if layer in reads.writes:
                z = found.z[layer]
                for kept, along in ((heads, towards), (before, direction)):
                    each = (z * reads.before_heads(along, layer, found)).sum(-1)
                    kept[rows, layer] = (share @ each).numpy()
                    change = change - each.sum(-1) if kept is heads else change
            rest[rows, layer] = (share @ change).numpy()
        sums["in"][rows] = (share @ (found.streams[0] * towards).sum(-1)).numpy()
        sums["stream"][rows] = (share @ (found.streams[-1] * direction).sum(-1)).numpy()
        fixed = direction @ reads.norm.bias
        logit = torch.stack(
            [_difference(row, one) for row, (_, one) in zip(found.logits, flat, strict=True)]
        )
        if reads.shift is not None:
            fixed = fixed + torch.stack([_difference(reads.shift, one) for _, one in flat])
        sums["bias"][rows] = (share @ fixed).numpy()
        sums["all"][rows] = (share @ logit).numpy()
    parts = Parts(
        heads, rest, sums["in"], sums["bias"], sums["all"], before, sums["stream"], reads.capped
    )
    same(torch.from_numpy(parts.total()), torch.from_numpy(parts.logit), "the unembedding")
    return parts


def of_prompt(model: Model, task: EncodedTask, prompt: int) -> tuple[Sequence[int], Array]:
    """Split what heads write for the last question of a prompt by token: ids up to it, logits."""
    question = task.questions[prompt][-1]
    ids = task.ids[prompt][: question.at + 1]
    module: Any = model.module
    direction = _difference(module.get_output_embeddings().weight.detach().cpu(), question)
    return ids, np.asarray(by_source(Readout(model), ids, question.at, direction).numpy())


def by_source(
    reads: Readout, ids: Sequence[int], at: int, direction: Float[Tensor, " residual"]
) -> Float[Tensor, "layer head key"]:
    """Split what every head writes along a direction of the unembedding by the token it is from.

    ``A[at, key] · v_key W_O^h`` through the frozen norms; over keys they sum to the head's direct
    logits. Layers without an attention map are 0.
    """
    model = reads.model
    found = reads.read(torch.tensor([list(ids)]), torch.tensor([[0], [at]]), maps=True)
    towards = reads.before_norm(direction[None], found)
    shares = torch.zeros(model.layers, model.heads, len(ids), dtype=torch.float64)
    for layer, (row, value) in found.maps.items():
        along = reads.before_heads(towards, layer, found)[0]
        value = value.repeat_interleave(len(row) // len(value), 0)
        shares[layer] = row * torch.einsum("hks,hs->hk", value, along)
        same(shares[layer].sum(-1), (found.z[layer][0] * along).sum(-1), f"layer {layer}")
    return shares


@dataclass
class Found:
    """What a pass gave at the questions, in float64: streams by boundary, the rest by layer."""

    streams: list[Tensor] = field(default_factory=list)
    z: dict[int, Tensor] = field(default_factory=dict)
    scales: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))


class Readout:
    """The linear way from the heads to the logits of a model, the scales of its norms frozen."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.writes = written(model)
        self.last = final_norm(model)
        module: Any = model.module
        self.unembedding = module.get_output_embeddings()
        self.table = self.unembedding.weight.detach().cpu()
        self.norm = read_norm(self.last, model, self.table.shape[1])
        added = getattr(self.unembedding, "bias", None)
        self.shift = None if added is None else added.detach().double().cpu()
        self.capped = bool(getattr(model.module.config, "final_logit_softcapping", None))
        self.outwards = weights.read(model, ("o",))

    def before_norm(
        self, direction: Float[Tensor, "question residual"], found: Found
    ) -> Float[Tensor, "question residual"]:
        """Map directions of the unembedding to those before the last norm."""
        last = found.streams[-1]
        scale = self.norm.scale(last, through(self.last, self.model, last))
        return self.norm.transposed(direction) * scale[:, None]

    def before_heads(
        self, towards: Float[Tensor, "question residual"], layer: int, found: Found
    ) -> Float[Tensor, "question head size"]:
        """Map directions of the residual stream to those of the outputs of a layer's heads."""
        write = self.writes[layer]
        inner = towards * write.factor
        if write.norm is not None:
            inner = write.norm.transposed(inner) * found.scales[layer][:, None]
        return torch.einsum("hsr,qr->qhs", self.outwards.of(layer, "o"), inner)

    def read(
        self, ids: Int[Tensor, "batch token"], where: Int[Tensor, "2 question"],
        *, maps: bool = False,
    ) -> Found:  # fmt: skip
        """Run the model and keep what it gives at the questions; of one question, maps too."""
        row, at = where
        found = Found()

        def see(boundary: int, stream: Tensor) -> None:
            found.streams.append(stream[row, at].double().cpu())

        def take(call: Any, outputs: Any, values: Tensor) -> None:
            found.z[call.layer] = values[row, :, at].double().cpu()
            if maps:
                one = torch.zeros(1, 1, values.shape[2], 1, device=values.device)
                one[0, 0, at] = 1
                rows = push(one, call.query, call.key, call.variant())[0, ..., 0]
                found.maps[call.layer] = rows.double().cpu(), call.value[0].double().cpu()

        def freeze(layer: int, norm: Norm) -> Any:
            def hook(part: nn.Module, args: Any, result: Tensor) -> None:
                entered, made = (each[row, at].double().cpu() for each in (args[0], result))
                found.scales[layer] = norm.scale(entered, made)

            return hook

        def uncap(part: nn.Module, args: Any, result: Tensor) -> None:
            found.logits = result[row, at].double().cpu()

        hooks = [
            each.module.register_forward_hook(freeze(layer, each.norm))
            for layer, each in self.writes.items()
            if each.module is not None and each.norm is not None
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
            found.logits = output[row, at].double().cpu()
        return found


def _difference(values: Float[Tensor, "vocab ..."], question: Any) -> Float[Tensor, ...]:
    """Average what the answers of a question have, less the wrong ones, or all words."""
    wrong = values[list(question.wrong_ids)] if question.wrong_ids else values
    right = values[list(question.answer_ids)].mean(0, dtype=torch.float64)
    return right - wrong.mean(0, dtype=torch.float64)


def direction_of(
    model: Model, answer_ids: Sequence[int], wrong_ids: Sequence[int] = ()
) -> Float[Tensor, " residual"]:
    """Return the mean unembedding of the answers, less that of the wrong ones if any."""
    module: Any = model.module
    table: Tensor = module.get_output_embeddings().weight.detach().cpu()
    right: Tensor = table[list(answer_ids)].mean(0, dtype=torch.float64)
    return right - table[list(wrong_ids)].mean(0, dtype=torch.float64) if wrong_ids else right
