"""Direct logit attribution: what each component writes to the answer, the last norm frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.analyses._interventions.ablation import Array, encode_task
from headscope.analyses._measurements.unembedding import final_norm
from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention import projections as weights
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import blocks, watching
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

TOKENS = 8192
# Shares of the largest number that rounding may make.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Norm:
    """The last norm as a linear map of one vector, its scale frozen at what it is for that vector.

    ``gain`` and ``bias`` are factor and summand of each channel; ``centred`` says whether the mean
    over channels is taken away, as LayerNorm does and RMSNorm does not.
    """

    gain: Float[Tensor, " residual"]
    bias: Float[Tensor, " residual"]
    centred: bool

    def linear(self, vectors: Float[Tensor, "... residual"]) -> Float[Tensor, "... residual"]:
        """Map vectors up to the frozen scale."""
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * self.gain


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
        What the model itself gives (prompt,); all parts sum to it.
    """

    heads: Array
    rest: Array
    embedding: Array
    bias: Array
    logit: Array

    def total(self) -> Array:
        """Sum all parts (prompt,)."""
        heads = np.nansum(self.heads, axis=(1, 2))
        return np.asarray(heads + self.rest.sum(1) + self.embedding + self.bias)


def attribute(model: Model, task: Task | EncodedTask) -> Parts:
    """Split the logit difference of every prompt into what components write directly.

    ``Σ z_h W_O^h`` of the heads, what else each layer adds to the residual stream, and the
    embeddings, each through the last norm with its scale frozen, the unembedding and ``answer −
    wrong``. Without wrong answers the mean over the vocabulary stands in their place.
    """
    encoded = encode_task(model, task)
    factors = written(model)
    norm = read_norm(model)
    found = weights.read(model, ("o",))
    outwards = {layer: found.of(layer, "o") for layer in model.geometry.attending}
    module: Any = model.module
    head = module.get_output_embeddings()
    table = head.weight.detach().double().cpu()
    added = getattr(head, "bias", None)
    shift = None if added is None else added.detach().double().cpu()

    count, layers = len(encoded.ids), model.layers
    heads = np.full((count, layers, model.heads), np.nan)
    rest, sums = np.zeros((count, layers)), {key: np.zeros(count) for key in ("in", "bias", "all")}
    for rows in batches(encoded.ids, TOKENS):
        asked = [encoded.questions[row] for row in rows]
        flat = [(place, one) for place, each in enumerate(asked) for one in each]
        where = torch.tensor([(place, one.at) for place, one in flat]).T
        ids = torch.tensor([encoded.ids[row] for row in rows])
        streams, z, output = _pass(model, ids, where)
        direction = torch.stack([_difference(table, one) for _, one in flat])
        # One over the frozen scale: what the last norm makes of its input, over what is linear.
        last = norm.linear(streams[-1])
        normed = _through(final_norm(model), model, streams[-1]) - norm.bias
        scale = (normed * last).sum(-1) / last.square().sum(-1)
        _same(normed, last * scale[:, None], "the last norm")
        towards = direction * scale[:, None]

        def of(
            vectors: Float[Tensor, "question residual"], along: Tensor = towards
        ) -> Float[Tensor, " question"]:
            return (norm.linear(vectors) * along).sum(-1)

        share = torch.zeros(len(rows), len(flat), dtype=torch.float64)
        for at, (place, _) in enumerate(flat):
            share[place, at] = 1 / len(asked[place])
        for layer in range(layers):
            change = of(streams[layer + 1] - streams[layer])
            if layer in outwards:
                vectors = torch.einsum("qhs,hsr->qhr", z[layer], outwards[layer]) * factors[layer]
                each = (norm.linear(vectors) * towards[:, None]).sum(-1)
                heads[rows, layer] = (share @ each).numpy()
                change = change - each.sum(-1)
            rest[rows, layer] = (share @ change).numpy()
        sums["in"][rows] = (share @ of(streams[0])).numpy()
        fixed = direction @ norm.bias
        logit = torch.stack(
            [_difference(row, one) for row, (_, one) in zip(output, flat, strict=True)]
        )
        if shift is not None:
            fixed = fixed + torch.stack([_difference(shift, one) for _, one in flat])
        sums["bias"][rows] = (share @ fixed).numpy()
        sums["all"][rows] = (share @ logit).numpy()
    parts = Parts(heads, rest, sums["in"], sums["bias"], sums["all"])
    _same(torch.from_numpy(parts.total()), torch.from_numpy(parts.logit), "the unembedding")
    return parts


def written(model: Model) -> dict[int, float]:
    """Measure by which factor the output of each layer's heads enters the residual stream.

    A known vector is added to what the output projection gives while everything else in the blocks
    is held at what it was; the stream after the block must change by a multiple of that vector,
    which it does not where a norm stands between.
    """
    found = weights.read(model, ("o",))
    projections = {
        layer: found.projections[layer, "o"].module for layer in model.geometry.attending
    }
    generator = torch.Generator().manual_seed(0)
    ids = (torch.arange(5) * 3 + 2).remainder(model.vocabulary)[None]
    width = found.of(min(projections), "o").shape[-1]
    pushes = {layer: torch.randn(width, generator=generator) for layer in projections}
    active: list[nn.Module] = []
    made: dict[nn.Module, Any] = {}
    beside: dict[nn.Module, None] = {}
    around: set[nn.Module] = set()

    def leave(part: nn.Module, args: Any, result: Any) -> None:
        active.pop()
        made[part] = result

    def meet(call: Any, outputs: Any, z: Tensor) -> None:
        # What stands beside the attention in the modules around it, at every depth.
        inside = set(call.module.modules())
        around.update(active)
        for part in active:
            if part not in inside:
                beside.update(dict.fromkeys(part.children()))

    every = [part for block in blocks(model) for part in block.modules()]
    hooks = [
        part.register_forward_pre_hook(lambda part, args: active.append(part)) for part in every
    ]
    hooks += [part.register_forward_hook(leave) for part in every]
    before = _streams(model, ids, hooks, meet)
    # Dropout and the like hand on what they are given, the push among it.
    held = [
        part
        for part in beside
        if part not in around and part in made and next(part.parameters(), None) is not None
    ]
    hooks = [part.register_forward_hook(lambda part, args, result: made[part]) for part in held]
    hooks += [
        module.register_forward_hook(_pushing(pushes[layer]))
        for layer, module in projections.items()
    ]
    after = _streams(model, ids, hooks)
    factors = {}
    for layer, push in pushes.items():
        gone = after[layer] - before[layer]
        moved = (after[layer + 1] - before[layer + 1] - gone)[0]
        vector = push.double()
        factor = float((moved @ vector).mean() / (vector @ vector))
        off = float((moved - factor * vector).abs().max())
        if factor < 1e-3 or off > 1e-2 * factor * float(vector.abs().max()):
            raise NotApplicable(
                f"model: the heads of layer {layer} of {model.name} do not write straight into the "
                "residual stream (a norm or another block stands between), so what they write is "
                "no sum; use patching or importance"
            )
        factors[layer] = factor
    return factors


def parallel(model: Model) -> bool:
    """Tell whether the MLP of a block reads the same stream as the attention, not what it wrote.

    A vector added to what the heads of a layer write then changes the stream by that vector alone.
    """
    found = weights.read(model, ("o",))
    layer = min(model.geometry.attending)
    ids = (torch.arange(5) * 3 + 2).remainder(model.vocabulary)[None]
    width = found.of(layer, "o").shape[-1]
    push = torch.randn(width, generator=torch.Generator().manual_seed(0))
    module: Any = found.projections[layer, "o"].module
    before = _streams(model, ids, [])
    after = _streams(model, ids, [module.register_forward_hook(_pushing(push))])
    moved = (after[layer + 1] - before[layer + 1])[0]
    along = (moved @ push.double() / push.double().square().sum())[:, None] * push.double()
    return bool((moved - along).abs().max() <= 1e-4 * along.abs().max())


def _streams(
    model: Model, ids: Int[Tensor, "1 position"], hooks: list[Any], take: Any = None
) -> dict[int, Tensor]:
    """Return the residual stream at every boundary, and remove the hooks."""
    seen: dict[int, Tensor] = {}
    try:
        with torch.no_grad(), watching(model, lambda at, it: seen.update({at: it})):
            run(model, ids, Reader(Request(stats=()), take=take), head=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {at: it.detach().double().cpu() for at, it in seen.items()}


def read_norm(model: Model) -> Norm:
    """Read gain, bias and kind of the last norm from what it makes of known vectors."""
    norm = final_norm(model)
    module: Any = model.module
    width = module.get_output_embeddings().weight.shape[1]
    probe = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0).double()
    probe = probe * (1 + torch.arange(width).double() / width)
    zero = _through(norm, model, torch.zeros(1, width))[0]
    one, moved = (_through(norm, model, (1e3 * (probe + up))[None])[0] for up in (0.0, 1.0))
    centred = float((one - moved).abs().max()) < 1e-3 * float(one.abs().max())
    inner = probe - probe.mean() if centred else probe
    gain = (one - zero) / (inner / inner.square().mean().sqrt())
    return Norm(gain, zero, centred)


def _pushing(push: Tensor) -> Any:
    def hook(part: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result + push.to(result)

    return hook


def _pass(
    model: Model, ids: Int[Tensor, "batch position"], where: Int[Tensor, "2 question"]
) -> tuple[list[Tensor], dict[int, Tensor], Tensor]:
    """Return residual streams, head outputs and logits at the questions, in float64."""
    row, at = where
    streams: dict[int, Tensor] = {}
    z: dict[int, Tensor] = {}

    def see(boundary: int, stream: Tensor) -> None:
        streams[boundary] = stream[row, at].double().cpu()

    def take(call: Any, outputs: Any, values: Tensor) -> None:
        z[call.layer] = values[row, :, at].double().cpu()

    with torch.no_grad(), watching(model, see):
        output = run(model, ids, Reader(Request(stats=()), (), take), head=True)
    return [streams[each] for each in sorted(streams)], z, output[row, at].double().cpu()


def _through(norm: nn.Module, model: Model, vectors: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = norm(vectors.to(model.device, model.dtype)[None])[0]
    return made.double().cpu()


def _difference(values: Float[Tensor, "vocab ..."], question: Any) -> Float[Tensor, ...]:
    """Average what the answers of a question have, less the wrong ones, or all words."""
    wrong = values[list(question.wrong_ids)] if question.wrong_ids else values
    return values[list(question.answer_ids)].mean(0) - wrong.mean(0)


def _same(one: Tensor, other: Tensor, what: str) -> None:
    off = float((one - other).abs().max())
    if off > TOLERANCE * max(float(one.abs().max()), float(other.abs().max()), 1e-6):
        raise NotApplicable(
            f"model: {what} of this model is no linear map with a frozen scale (off by {off:.2g}), "
            "such as with a soft cap on the logits, so logits do not split into parts"
        )
