"""Route a Hugging Face model's attention through headscope via ``AttentionInterface``.

Every model that follows transformers' attention interface looks its attention function up by
name. Ours is registered under one name, together with a mask function of the same name (without
it transformers drops the padding mask in silence), and a model is switched to it only inside
`intercept_attention`. What arrives in a layer is handed on as an `AttentionCall`; nothing is
guessed: a field that the engine does not know is refused by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from headscope.kernels.api import AttentionSpec, Request, WeightEdits, attend, attend_differentiable
from headscope.kernels.errors import InvalidInput, UnsupportedModel
from headscope.probes.attention import work
from headscope.probes.attention.implementation import using
from headscope.probes.attention.tracing import to_call
from headscope.probes.attention.tracing.mask import Mask, MaskRule
from headscope.probes.attention.tracing.scores import Attention
from headscope.probes.attention.tracing.tracer import trace_attention
from headscope.probes.models.bridge import check_same, unwrapped
from headscope.probes.models.encoder_decoder import SELF, AttentionIndex

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NAME = "headscope"

# Fields that transformers passes along and that change nothing in the attention itself.
HARMLESS = {
    "cache_position", "deterministic", "layer_idx", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "position_ids", "return_dict", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class AttentionCall:
    """The call of one attention layer: queries, keys and values after their rotation."""

    layer: int
    module: nn.Module
    query: Float[Tensor, "batch head query size"]
    key: Float[Tensor, "batch kv_head key size"]
    value: Float[Tensor, "batch kv_head key value_size"]
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    key_mask: Bool[Tensor, "batch key"] | None
    sinks: Float[Tensor, " head"] | None = None
    slopes: Float[Tensor, " head"] | None = None
    bias: Float[Tensor, "_ _ _ _"] | None = None
    sigmoid: bool = False
    kind: str = SELF

    def attend(self, request: Request, edits: WeightEdits | None = None) -> dict[str, Tensor]:
        """Compute this layer, with gradients where some are asked for."""
        inputs = (self.query, self.key, self.value)
        variant = self.variant(edits)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return attend_differentiable(*inputs, request, variant)
        return attend(*inputs, request, variant)

    def variant(self, edits: WeightEdits | None = None) -> AttentionSpec:
        """Return how the scores of this layer become weights."""
        # Without causal order the kernels cannot tell that queries and keys are the same tokens.
        unordered = not self.causal and self.query.shape[2] == self.key.shape[2]
        query_mask = self.key_mask if unordered else None
        if self.kind == "cross" and query_mask is not None:
            query_mask = torch.ones_like(query_mask)
        names = ("scale", "causal", "window", "softcap", "key_mask", "sinks", "slopes", "bias")
        shared = {name: getattr(self, name) for name in (*names, "sigmoid")}
        return AttentionSpec(query_mask=query_mask, edits=edits, **shared)


Receiver = Callable[[AttentionCall], Tensor]


@dataclass
class _Session:
    receive: Receiver
    root: nn.Module
    attention: str = SELF
    index: AttentionIndex | None = None
    outside: bool = False
    masks: set[tuple[bool, int | None]] = field(default_factory=set)
    numbers: dict[int, int] = field(default_factory=dict)

    def layer_of(self, module: nn.Module) -> tuple[str, int]:
        """Return the kind of an attention module, and its layer."""
        return (SELF, self._layer(module)) if self.index is None else self.index.find(module)

    def _layer(self, module: nn.Module) -> int:
        """Number an attention module: by its own word, or by its place among its like."""
        for name in ("layer_idx", "layer_id"):
            if isinstance(getattr(module, name, None), int):
                return int(getattr(module, name))
        if id(module) not in self.numbers:
            siblings = [part for part in self.root.modules() if type(part) is type(module)]
            self.numbers.update({id(part): number for number, part in enumerate(siblings)})
        return self.numbers[id(module)]

    def on_traced(self, module: nn.Module, traced: Attention) -> Tensor:
        """Compute a traced attention module outside the interface."""
        kind, layer = self.layer_of(module)
        fields = to_call.fields(traced, module)
        return self.dispatch(
            AttentionCall(layer=layer, module=module, softcap=None, kind=kind, **fields)
        )

    def dispatch(self, call: AttentionCall) -> Tensor:
        """Pass a call to the receiver, or compute it as it is where another kind is chosen."""
        batch, _, queries, _ = call.query.shape
        backward = torch.is_grad_enabled() and call.query.requires_grad
        work.add(batch * queries, backward=backward)
        chosen = call.kind == self.attention
        return self.receive(call) if chosen else call.attend(Request(stats=()))["z"]


_session: ContextVar[_Session | None] = ContextVar("headscope_session", default=None)
# The switch is a field of the model's config, so two threads may not hold it at once.
_lock = threading.RLock()


@contextmanager
def intercept_attention(model: Model, receive: Receiver) -> Iterator[None]:
    """Run a model's attention through `receive`, and put everything back afterwards.

    Inside, every attention layer calls ``receive(call)``, which returns the heads' outputs
    ``z`` with dims batch, head, query, value_size. In an encoder–decoder model these are the layers
    of the chosen attention; the others are computed as they are. Dropout is off inside, also for a
    model in training mode. The model, its config and a TransformerBridge around it are restored on
    the way out, also when an error is raised. One thread at a time.
    """
    with _lock, ExitStack() as stack:
        if model.bridge is not None:
            check_same(model.bridge, model.bridge_weights)
            stack.enter_context(unwrapped(model.bridge))
        custom = own_implementation(model.module)
        stack.enter_context(using(model.module, custom or NAME))
        index = None if model.attention == SELF else AttentionIndex(model.module)
        if index is not None:
            stack.enter_context(index.track_cross_attention())
        outside = not follows(model.module)
        session = _Session(receive, model.module, model.attention, index, outside)
        token = _session.set(session)
        stack.callback(_session.reset, token)
        if session.outside or custom is not None:
            stack.enter_context(trace_attention(model.module, session.on_traced))
        yield


def follows(module: nn.Module) -> bool:
    """Return whether a Hugging Face model looks its attention up in transformers' interface."""
    # The bridge replaces the attention modules, so only the class of the model itself is asked.
    kind: Any = type(module)
    return bool(kind._can_set_attn_implementation())


def own_implementation(module: nn.Module) -> str | None:
    """Return the attention that a model is set to, where its user registered it; else None.

    Its steps are followed as those of a module outside the interface are: nothing else tells what
    a function does with queries and keys.
    """
    name = getattr(module.config, "_attn_implementation", None)
    registered: Any = ALL_ATTENTION_FUNCTIONS
    function = registered.get(name)
    function = getattr(function, "func", function)  # a partial
    home = getattr(function, "__module__", "transformers")
    return None if home.partition(".")[0] == "transformers" or name == NAME else name


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **fields: Any,
) -> tuple[Tensor, None]:
    session = _session.get()
    if session is None:
        raise InvalidInput(
            f"attention: {type(module).__name__} is set to {NAME!r} outside a capture; "
            "set_attn_implementation('sdpa') puts it back"
        )
    number = session.layer_of(module)
    call = _read(module, number, query, key, value, attention_mask, fields)
    _compare_with_masks(call, session.masks)
    z = session.dispatch(call)
    return z.to(query.dtype).transpose(1, 2).contiguous(), None


def _read(
    module: nn.Module,
    layer_number: tuple[str, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    fields: dict[str, Any],
) -> AttentionCall:
    where, (kind, layer) = type(module).__name__, layer_number
    if fields.pop("dropout", 0.0):
        raise InvalidInput(f"dropout: {where} asks for dropout; call model.eval() first")
    scaling = fields.pop("scaling", None)
    window = fields.pop("sliding_window", None)
    softcap = fields.pop("softcap", None)
    causal = fields.pop("is_causal", None)
    sinks = fields.pop("s_aux", None)
    bias = fields.pop("position_bias", None)
    if kind == "cross" and bias is not None and not bool(bias.any()):
        bias = None  # T5 hands its cross-attention a matrix of zeros
    unknown = [name for name, setting in fields.items() if setting is not None]
    for name in sorted(set(unknown) - HARMLESS):
        raise UnsupportedModel(
            f"{name}: {where} (layer {layer}) uses a variant of attention that the engine does "
            "not know; this model is refused"
        )
    if mask is not None and mask.ndim != 2:
        raise UnsupportedModel(
            f"attention_mask: {where} (layer {layer}) passes a mask with {mask.ndim} dims; only "
            "a mask over the keys (batch, key) is known"
        )
    return AttentionCall(
        layer=layer,
        module=module,
        query=query,
        key=key,
        value=value,
        scale=float(scaling) if scaling is not None else query.shape[-1] ** -0.5,
        causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
        window=int(window) if window is not None else None,
        softcap=float(softcap) if softcap is not None else None,
        key_mask=mask.bool() if mask is not None else None,
        sinks=sinks.detach().float() if sinks is not None else None,
        bias=bias.detach().float() if bias is not None else None,
        kind=kind,
    )


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """Return the padding mask as flash attention gets it, and note the shape behind it."""
    session = _session.get()
    shape: tuple[bool, int | None] = (True, None)
    if session is not None and mask_function is not None:
        window = options.get("local_size")
        last = torch.arange(max(q_length - 2, 0), q_length)[:, None] + int(q_offset)
        keys = torch.arange(kv_length)[None, :] + int(kv_offset)
        zero = torch.zeros((), dtype=torch.long)
        visible = mask_function(zero, zero, last, keys).cpu().expand(len(last), kv_length)
        shape = _shape(visible, last, keys, window)
        session.masks.add(shape)
    mask: Tensor | None = flash_attention_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask=attention_mask
    )
    if session is None or not session.outside:
        return mask
    rule = MaskRule(*shape, None if mask is None else mask.bool())
    size = (batch_size, 1, q_length, kv_length)
    return Mask.of(rule, size, options["dtype"], torch.device(options["device"]))


def _shape(visible: Tensor, last: Tensor, keys: Tensor, window: Any) -> tuple[bool, int | None]:
    """Classify a mask by its last two rows: a chunked mask agrees with a window on one at most."""
    if bool(visible.all()) and visible.shape[1] > 1 and bool((keys > last).any()):
        return False, None
    causal = keys <= last
    if torch.equal(visible, causal):
        return True, None
    if window is not None and torch.equal(visible, causal & (keys > last - int(window))):
        return True, int(window)
    raise UnsupportedModel(
        "attention_mask: the model builds a mask that is neither causal nor a sliding window "
        "(chunked or custom); this model is refused at this length"
    )


def _compare_with_masks(call: AttentionCall, masks: set[tuple[bool, int | None]]) -> None:
    """Refuse a layer whose flags do not describe any mask that the model has built."""
    if call.kind == "cross":
        if call.causal or call.window is not None:
            raise UnsupportedModel(
                f"is_causal: cross-attention of layer {call.layer} says causal={call.causal}, "
                f"window={call.window}, but source and target have no common order"
            )
        return
    # To a single query, or with a single key, causal order and none look alike.
    if not masks or 1 in (call.query.shape[2], call.key.shape[2]):
        return
    narrow = call.window if call.window and call.key.shape[2] > call.window else None
    if (call.causal, narrow) not in masks:
        raise UnsupportedModel(
            f"sliding_window: layer {call.layer} says causal={call.causal}, window={narrow}, but "
            f"the model's masks are (causal, window) = {sorted(masks, key=str)}"
        )


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
