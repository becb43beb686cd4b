"""Encoder–decoder models: their stacks, and which attention modules are cross-attention.

Nothing is guessed from names: a stack is what the model itself calls its encoder or decoder, and an
attention of the decoder attends to the source in exactly those calls that hand it the
encoder's states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.kernels.errors import InvalidInput, UnsupportedModel

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

SELF = "self"
KINDS = ("encoder", "decoder", "cross")
STATES = ("key_value_states", "encoder_hidden_states")


def choose(module: Any, attention: str) -> str:
    """Refuse an attention that a model does not have."""
    paired = bool(module.config.is_encoder_decoder)
    kinds = KINDS if paired else (SELF,)
    if attention in kinds:
        return attention
    name = type(module).__name__
    if paired:
        raise InvalidInput(
            f"attention: {name} has an encoder and a decoder; choose one of attention='encoder', "
            "'decoder', 'cross'"
        )
    raise InvalidInput(
        f"attention: {name} has no encoder and decoder, so not {attention!r}; leave it at 'self'"
    )


def blocks(module: Any, attention: str) -> nn.ModuleList:
    """Find the blocks that hold an attention of an encoder–decoder model."""
    return outermost(module.get_encoder() if attention == "encoder" else module.get_decoder())


def outermost(stack: nn.Module) -> nn.ModuleList:
    """Find the one list of modules in a stack that lies in no other."""
    lists = [part for part in stack.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for group in lists for part in group.modules() if part is not group}
    outer = [group for group in lists if id(group) not in inner]
    if len(outer) != 1:
        raise UnsupportedModel(
            f"model: the blocks of {type(stack).__name__} are {len(outer)} lists of modules, not "
            "one; this architecture is refused"
        )
    return outer[0]


@dataclass
class AttentionIndex:
    """The attention modules of an encoder–decoder model: which kind each is, and its layer."""

    module: nn.Module
    stacks: dict[int, tuple[str, int]] = field(default_factory=dict)
    crossing: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            for number, block in enumerate(blocks(self.module, side)):
                self.stacks.update({id(part): (side, number) for part in block.modules()})

    @contextmanager
    def track_cross_attention(self) -> Iterator[None]:
        """Record, inside the context, which calls get the encoder's states."""
        with ExitStack() as stack:
            for part in self.module.modules():
                if self.stacks.get(id(part), ("", 0))[0] != "decoder":
                    continue
                signature = inspect.signature(part.forward)
                if not signature.parameters.keys().isdisjoint(STATES):
                    hook = self._noting(signature)
                    stack.enter_context(part.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def _noting(self, signature: inspect.Signature) -> Callable[..., None]:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
            arguments = signature.bind_partial(*args, **kwargs).arguments
            self.crossing[id(part)] = any(arguments.get(name) is not None for name in STATES)

        return hook

    def find(self, part: nn.Module) -> tuple[str, int]:
        """Return the kind of an attention module and its layer."""
        name = type(part).__name__
        if id(part) not in self.stacks:
            raise UnsupportedModel(f"model: {name} lies in no block of encoder or decoder; refused")
        side, layer = self.stacks[id(part)]
        layer_idx = getattr(part, "layer_idx", None)
        if layer_idx is not None and int(layer_idx) != layer:
            raise UnsupportedModel(
                f"model: {name} calls itself layer {int(layer_idx)} but lies in block {layer} of "
                f"the {side}; this architecture is refused"
            )
        return ("cross" if self.crossing.get(id(part)) else side), layer


def through(
    model: Model, source: Tensor, target: Tensor, fields: dict[str, Any], *, head: bool
) -> Float[Tensor, "batch position _"]:
    """Run an encoder–decoder model: its logits, or the last hidden state of the chosen stack.

    Without ``head``, an encoder runs without the decoder.
    """
    module: Any = model.module
    source, target = source.to(model.device), target.to(model.device)
    result: Tensor
    if head:
        result = module(input_ids=source, decoder_input_ids=target, **fields).logits
        return result
    fields = {name: value for name, value in fields.items() if name != "use_cache"}
    encoded = module.get_encoder()(input_ids=source, **fields).last_hidden_state
    if model.attention == "encoder":
        result = encoded
    else:
        result = module.get_decoder()(
            input_ids=target, encoder_hidden_states=encoded, use_cache=False, **fields
        ).last_hidden_state
    return result


def maps(model: Model, source: Tensor, target: Tensor, fields: dict[str, Any]) -> list[Tensor]:
    """Return the weights of the chosen attention as the model itself lists them, layer by layer."""
    options = {**fields, "output_attentions": True}
    result = model.module(
        input_ids=source.to(model.device), decoder_input_ids=target.to(model.device), **options
    )
    name = "cross_attentions" if model.attention == "cross" else f"{model.attention}_attentions"
    weights = getattr(result, name, None) or ()
    if not weights or not all(isinstance(layer, torch.Tensor) for layer in weights):
        raise UnsupportedModel(
            f"model: {model.architecture} returns no {name} to check against; refused"
        )
    return list(weights)
