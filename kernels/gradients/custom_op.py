"""Attention as an operator of torch that has a gradient: ``torch.ops.headscope.attend``.

An operator rather than a Python function of tensors: autograd, fake tensors and ``torch.compile``
then take the call as one step, and q, k, v and the results are all that is kept for the way back.
"""

from typing import Any

import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention import attend
from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.errors import NotApplicable
from headscope.kernels.gradients.backward import differentiate
from headscope.kernels.panels.engine import PanelEngine
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.request import Request
from headscope.kernels.weight_edits import WeightEdits

OF_VARIANT = ("key_mask", "query_mask", "slopes", "bias")
OF_EDITS = (
    "key_bias", "span_bias", "query_spans", "key_spans", "first", "recent", "temperature", "pattern"
)  # fmt: skip
"""Tensors without a gradient: the operator's ``fixed``, those of the variant before these."""

ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor?[] fixed, Tensor? spans, int span_count, "
    "int[]? lengths, float scale, bool causal, int? window, float? softcap, bool sigmoid, str stats"
)
NAMES = tuple(argument.split()[-1] for argument in ARGUMENTS.split(", "))
AS_THEY_ARE = ("sinks", "scale", "causal", "window", "softcap", "sigmoid")
"""Arguments that are fields of the variant."""


def run(
    q: Tensor, k: Tensor, v: Tensor, request: Request, spec: AttentionSpec
) -> dict[str, Tensor]:
    """Call the operator: ``z``, before any gate, and the statistics of a request."""
    names = tuple(dict.fromkeys(("z", *request.stats)))
    edits = WeightEdits() if spec.edits is None else spec.edits
    fixed = [getattr(spec, name) for name in OF_VARIANT]
    fixed += [getattr(edits, name) for name in OF_EDITS]
    spans = request.spans if "span_mass" in names else None
    count = 0 if spans is None else int(spans.max()) + 1
    results = torch.ops.headscope.attend(
        q, k, v, spec.sinks, fixed, spans, count, spec.lengths, spec.scale,
        spec.causal, spec.window, spec.softcap, spec.sigmoid, ",".join(names),
    )  # fmt: skip
    return dict(zip(names, results, strict=True))


def panels(*arguments: Any) -> Panels:
    """Reassemble the operator's arguments."""
    call = dict(zip(NAMES, arguments, strict=True))
    named: dict[str, Any] = dict(zip((*OF_VARIANT, *OF_EDITS), call["fixed"], strict=True))
    edits = {name: named.pop(name) for name in OF_EDITS}
    spec = AttentionSpec(
        **named,
        **{name: call[name] for name in AS_THEY_ARE},
        lengths=None if call["lengths"] is None else tuple(call["lengths"]),
        edits=None if all(value is None for value in edits.values()) else WeightEdits(**edits),
    )
    request = Request(stats=tuple(call["stats"].split(",")), spans=call["spans"])
    read = frozenset({"weights", "logits"})
    return Panels(call["q"], call["k"], call["v"], spec, request, reductions=read)


def _attend(*arguments: Any) -> list[Tensor]:
    call = panels(*arguments)
    names = call.request.stats
    with torch.no_grad(), torch.autocast(call.q.device.type, enabled=False):
        if call.q.dtype == torch.float64:
            results = PanelEngine(call).run([statistics.load(name) for name in names])
        else:
            results = attend(call.q, call.k, call.v, call.request, call.spec)
    return [results[name] for name in names]


def _attend_shapes(*arguments: Any) -> list[Tensor]:
    call = dict(zip(NAMES, arguments, strict=True))
    q, names = call["q"], call["stats"].split(",")
    last = {"z": (call["v"].shape[3],), "span_mass": (call["span_count"],)}
    kind = torch.promote_types(q.dtype, torch.float32)
    return [q.new_empty(*q.shape[:3], *last.get(name, ()), dtype=kind) for name in names]


def _backward(*arguments: Any) -> list[Tensor]:
    *of_call, results, upstream = arguments
    call = panels(*of_call)
    names = call.request.stats
    gradients = {
        name: gradient
        for name, gradient in zip(names, upstream, strict=True)
        if gradient is not None
    }
    with torch.no_grad(), torch.autocast(call.q.device.type, enabled=False):
        grads = differentiate(call, dict(zip(names, results, strict=True)), gradients)
    inputs = {"q": call.q, "k": call.k, "v": call.v, "sinks": call.spec.sinks}
    return [grads[name].to(tensor.dtype) for name, tensor in inputs.items() if tensor is not None]


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in arguments[:4] if tensor is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, fixed, spans = inputs[:6]
    ctx.save_for_backward(*tensors, *fixed, spans, *output)
    ctx.rest = inputs[6:]


def _carry_back(ctx: Any, upstream: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    q, k, v, sinks, *others = ctx.saved_tensors
    count = len(OF_VARIANT) + len(OF_EDITS)
    fixed, spans, results = others[:count], others[count], others[count + 1 :]
    grads = torch.ops.headscope.attend_backward(
        q, k, v, sinks, fixed, spans, *ctx.rest, results, upstream
    )
    return (*grads, *[None] * (len(NAMES) - len(grads)))


def _refuse_twice(ctx: Any, *upstream: Any) -> None:
    raise NotApplicable("create_graph: attention has no second derivative; give create_graph=False")


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> None:
    raise NotApplicable("vmap: attention is not mapped over a dim; move the dim into the batch")


OPERATORS = {
    "headscope::attend": (_attend, _attend_shapes, f"({ARGUMENTS}) -> Tensor[]"),
    "headscope::attend_backward": (
        _backward,
        _backward_shapes,
        f"({ARGUMENTS}, Tensor[] results, Tensor?[] upstream) -> Tensor[]",
    ),
}
for _name, (_run, _shapes, _schema) in OPERATORS.items():
    torch.library.custom_op(_name, _run, mutates_args=(), schema=_schema)
    torch.library.register_fake(_name, _shapes)
    torch.library.register_vmap(_name, _refuse_vmap)
torch.library.register_autograd("headscope::attend", _carry_back, setup_context=_keep)
torch.library.register_autograd("headscope::attend_backward", _refuse_twice)
