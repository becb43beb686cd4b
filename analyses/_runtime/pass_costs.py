"""What passes of a model cost on this machine: seconds and bytes, measured on short ones."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headscope.analyses._interventions.batched_edits import RowGate
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.capturing.memory_measurement import PeakTensorBytes

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# Tokens of the passes that are measured, and how often each is timed.
SHORT, LONG, TIMES = 16, 128, 2


@dataclass(frozen=True)
class PassCosts:
    """Seconds and bytes of the passes of a model.

    Attributes
    ----------
    call, token
        Seconds of a layer, whatever its tokens, and of each of them.
    unembedded
        Seconds of the logits of one position.
    sloped
        What a pass with its backward pass takes, as a multiple of one without.
    sloped_bytes
        Bytes of a token in a pass that is kept for a gradient.
    """

    call: float
    token: float
    unembedded: float
    sloped: float
    sloped_bytes: float


_known: weakref.WeakKeyDictionary[nn.Module, PassCosts] = weakref.WeakKeyDictionary()


def known(model: Model) -> PassCosts | None:
    """Return what passes of a model cost, where it was measured."""
    return _known.get(model.module)


def measure(model: Model, ids: Sequence[int]) -> PassCosts:
    """Measure what passes cost, once for each model; ``ids`` are any that it takes."""
    if model.module not in _known:
        _known[model.module] = _measure(model, ids)
    return _known[model.module]


def _measure(model: Model, ids: Sequence[int]) -> PassCosts:
    context = model.context or LONG
    few, many = (torch.tensor([([*ids] * size)[: min(size, context)]]) for size in (SHORT, LONG))
    plain, sloped = _run(model, few), _sloped(model, few)
    with PeakTensorBytes() as memory:
        sloped()
    layers, step = len(model.geometry.attending), max(many.numel() - few.numel(), 1)
    short, whole = _seconds(plain), _seconds(_run(model, many))
    token = max(whole - short, 0.0) / step / layers
    module: Any = model.module
    head = module.get_output_embeddings()
    unembedded = 0.0
    if head is not None:
        weight = head.weight
        hidden = torch.zeros(few.numel(), weight.shape[1], dtype=weight.dtype, device=weight.device)
        unembedded = _seconds(lambda: head(hidden).float().log_softmax(-1)) / few.numel()
    return PassCosts(
        call=max(short / layers - few.numel() * token, 0.0),
        token=token,
        unembedded=unembedded,
        sloped=_seconds(_sloped(model, many)) / whole,
        sloped_bytes=memory.peak / few.numel(),
    )


def _run(model: Model, ids: Tensor) -> Callable[[], Tensor]:
    """Return a pass as a function."""
    return lambda: run(model, ids, Reader(Request(stats=())), head=False)


def _sloped(model: Model, ids: Tensor) -> Callable[[], Any]:
    """Return a pass and the gradient of a gate on every head as a function."""

    def work() -> Any:
        with torch.enable_grad():
            gates = torch.ones(len(ids), model.layers, model.heads, device=model.device)
            edit = RowGate(gates.requires_grad_())
            hidden = run(model, ids, Reader(Request(stats=()), (edit,)), head=False)
            return torch.autograd.grad(hidden.float().sum(), gates)

    return work


def _seconds(work: Callable[[], Any]) -> float:
    """Return the mean time of some runs."""
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(TIMES):
            work()
    return (time.perf_counter() - start) / TIMES
