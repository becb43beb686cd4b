"""Forward passes with intercepted attention: logits, with or without edits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headscope.kernels.api import Request, WeightEdits
from headscope.kernels.errors import HeadscopeError, InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.interventions.base import Edit
from headscope.probes.models.encoder_decoder import SELF, through
from headscope.probes.models.pair import Pair, start_token
from headscope.probes.models.vision import vision_tower

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.models.pair import Ids

# A user's config may ask for more than we read, or for a tuple in place of named outputs.
PLAIN: dict[str, Any] = {
    "use_cache": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}

Take = Callable[[AttentionCall, dict[str, Tensor], Tensor], None]


@dataclass
class Reader:
    """Compute every attention call with the engine: statistics, then edits on ``z``."""

    request: Request
    edits: Sequence[Edit] = ()
    take: Take | None = None
    layers: list[int] = field(default_factory=list)

    def __call__(self, call: AttentionCall) -> Tensor:
        """Compute one layer, pass its statistics on, return the edited ``z``."""
        outputs = call.attend(self.request, self.inside(call))
        z = outputs["z"]
        for edit in self.edits:
            z = edit.apply(call.layer, z)
        self.layers.append(call.layer)
        if self.take is not None:
            self.take(call, outputs, z)
        return z

    def inside(self, call: AttentionCall) -> WeightEdits | None:
        """Combine what the edits change inside the attention of one layer."""
        shape = (*call.query.shape[:3], call.key.shape[2])
        changes = [edit.inside(call.layer, shape) for edit in self.edits]
        present = [change for change in changes if change is not None]
        return functools.reduce(WeightEdits.then, present) if present else None


def run(
    model: Model,
    ids: Ids,
    reader: Reader,
    *,
    head: bool,
    mask: Bool[Tensor, "batch position"] | None = None,
    positions: Int[Tensor, "batch position"] | None = None,
) -> Tensor:
    """Run the model once, its attention intercepted; every layer must arrive exactly once.

    An encoder–decoder model is given a `Pair` of token ids; its encoder alone may also be given
    what it reads. A model of images is given pixels (batch, channel, height, width).

    Returns the logits, or with ``head=False`` the last hidden state, which spares the
    vocabulary-sized matrix. ``mask`` is True at tokens that are no padding; ``positions`` stand in
    place of the tokens' own where the model takes some.
    """
    for edit in reader.edits:
        edit.check(model.geometry)
    before = len(reader.layers)
    with intercept_attention(model, reader):
        result = call(model, ids, head=head, mask=mask, positions=positions)
    arrived = reader.layers[before:]
    if sorted(arrived) != model.geometry.attending:
        raise UnsupportedModel(
            f"model: layers {sorted(arrived)} of {model.name} asked for attention, expected each "
            f"of {model.geometry.attending} once; this architecture is refused"
        )
    check_finite(model, result)
    return result


def check_finite(model: Model, output: Tensor) -> None:
    """Refuse NaN and infinite numbers: both reach the ends of the range, which one pass finds."""
    if not all(math.isfinite(end) for end in torch.aminmax(output.detach())):
        raise InvalidInput(f"model: {model.name} gives NaN or infinite numbers; check its weights")


def call(
    model: Model,
    ids: Ids,
    *,
    head: bool,
    mask: Bool[Tensor, "batch position"] | None = None,
    positions: Int[Tensor, "batch position"] | None = None,
) -> Tensor:
    """Call a model, whatever its attention is computed by: logits, or the last hidden state."""
    result: Tensor
    if model.attention != SELF:
        pair = paired(model, ids)
        return through(model, pair.source, pair.target, PLAIN, head=head)
    if isinstance(ids, Pair):
        raise InvalidInput(
            f"ids: a Pair, but {model.name} has no encoder and decoder; give token ids"
        )
    ids = ids.to(model.device)
    if ids.is_floating_point():
        return _run_vision(model, ids)
    if model.reads != "tokens":
        raise UnsupportedModel(
            f"model: {model.architecture} reads {model.reads}, and this asks for tokens"
        )
    padding = {} if mask is None else {"attention_mask": mask.long().to(ids.device)}
    if positions is not None:
        _check_positions(model)
        # Without a mask transformers takes positions that start anew for texts that were packed.
        padding = {"attention_mask": torch.ones_like(ids), **padding}
        padding["position_ids"] = positions.to(ids.device)
    if head and model.bridge is not None:
        result = model.bridge(ids, return_type="logits", **padding)
    elif head:
        result = model.module(input_ids=ids, **padding, **PLAIN).logits
    else:
        result = model.base(input_ids=ids, **padding, **PLAIN).last_hidden_state
    return result


def _check_positions(model: Model) -> None:
    """Refuse a model whose positions cannot be chosen."""
    module: Any = type(model.module)
    if model.bridge is not None or "position_ids" not in signature(module.forward).parameters:
        raise NotApplicable(
            f"positions: {'a TransformerBridge' if model.bridge else model.architecture} takes no "
            "positions of the caller's; leave them as they are in the text"
        )


def _run_vision(model: Model, pixels: Tensor) -> Tensor:
    """Run a vision model on pixels: the last hidden state."""
    try:
        output = vision_tower(model.module)(pixel_values=pixels.to(model.dtype), **PLAIN)
    except HeadscopeError:
        raise
    except ValueError as error:
        # The model's own word on a size that it does not take.
        raise InvalidInput(f"prompts: {str(error).splitlines()[0]}") from error
    hidden: Tensor = output.last_hidden_state
    return hidden


def paired(model: Model, ids: Ids) -> Pair:
    """Complete what an encoder reads with the start of a target; refuse half a pair elsewhere."""
    if isinstance(ids, Pair):
        return ids
    if model.attention != "encoder":
        raise NotApplicable(
            f"ids: the {model.attention} attention of {model.name} needs source and target; "
            "give Pair(source=..., target=...)"
        )
    return Pair(ids, torch.full((len(ids), 1), start_token(model)))


def logits(
    model: Model,
    ids: Ids,
    edits: Sequence[Edit] = (),
    positions: Int[Tensor, "batch question"] | None = None,
) -> Float[Tensor, "batch position vocab"]:
    """Compute the next-token logits of a model, with its heads edited, in the model's dtype.

    Differentiable with respect to the values of a `Gate` when gradients are enabled.

    Parameters
    ----------
    ids
        Token ids, all prompts of one length; for an encoder–decoder model a `Pair` of them.
    edits
        Edits on the heads, applied in order.
    positions
        Positions whose logits are wanted, as many in every row; all without them.
    """
    if model.reads == "images":
        raise NotApplicable(
            f"ids: {model.architecture} reads images, so it has no next-token logits"
        )
    texts = (ids.source, ids.target) if isinstance(ids, Pair) else (ids,)
    parts = [torch.as_tensor(part) for part in texts]
    for part in parts:
        if part.ndim != 2 or part.shape[1] == 0:
            raise InvalidInput(
                f"ids: dims {tuple(part.shape)}; give (batch, position), a token or more"
            )
        model.check_lengths([part.shape[1]])
    ids = Pair(*parts) if isinstance(ids, Pair) else parts[0]
    reader = Reader(Request(stats=()), edits)
    if positions is None:
        return run(model, ids, reader, head=True)
    with unembedding_at(model, positions) as finish:
        return finish(run(model, ids, reader, head=True))


@contextmanager
def unembedding_at(
    model: Model, positions: Int[Tensor, "batch question"]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Restrict the unembedding to some positions, which saves the logits of all others.

    What is yielded takes the logits of the pass to the positions where a model computed all.
    """
    applied: list[bool] = []

    def take(values: Tensor) -> Tensor:
        row = torch.arange(len(values), device=values.device)[:, None]
        return values[row, positions.to(values.device)]

    def enter(part: torch.nn.Module, args: Any) -> Any:
        applied.append(True)
        return (take(args[0]), *args[1:])

    module: Any = model.module
    with module.get_output_embeddings().register_forward_pre_hook(enter):
        yield lambda output: output if applied else take(output)
