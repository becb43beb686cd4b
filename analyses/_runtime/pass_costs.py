"""What passes of a model cost on this machine: seconds and bytes, measured on short ones."""

from __future__ import annotations

import time
import weakref
from bisect import bisect
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

# Tokens of the passes that are timed; the longest is left out where it takes more than `PATIENCE`
# seconds. The shortest of `TIMES` runs counts: the first ones wait for memory and for threads.
SHORT, LONG, LONGEST, TIMES = 16, 128, 512, 3
PATIENCE = 2.0


@dataclass(frozen=True)
class PassCosts:
    """Seconds and bytes of the passes of a model.

    Attributes
    ----------
    tokens, layer
        Tokens of the passes that were timed, rising, and the seconds of a layer in each.
    unembedded
        Seconds of the logits of one position.
    sloped
        What a pass with its backward pass takes, as a multiple of one without.
    sloped_bytes
        Bytes of a token in a pass that is kept for a gradient.
    """

    tokens: tuple[int, ...]
    layer: tuple[float, ...]
    unembedded: float
    sloped: float
    sloped_bytes: float

    @property
    def call(self) -> float:
        """Seconds of a layer, whatever its tokens."""
        return max(self.layer[0] - self.tokens[0] * self._slope(0), 0.0)

    def seconds(self, tokens: float) -> float:
        """Return the seconds of a layer on some tokens, on the lines between those timed.

        >>> PassCosts((10, 20, 40), (2.0, 3.0, 4.0), 0, 0, 0).seconds(30)
        3.5
        """
        part = min(max(bisect(self.tokens, tokens) - 1, 0), len(self.tokens) - 2)
        return max(self.layer[part] + (tokens - self.tokens[part]) * self._slope(part), 0.0)

    def _slope(self, part: int) -> float:
        step = max(self.tokens[part + 1] - self.tokens[part], 1)
        return max(self.layer[part + 1] - self.layer[part], 0.0) / step


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
    short, long = (_rows(ids, size, context) for size in (SHORT, LONG))
    plain, sloped = _run(model, short), _sloped(model, short)
    with PeakTensorBytes() as memory:
        sloped()
    passes, seconds = [short, long], [_seconds(plain), _seconds(_run(model, long))]
    if seconds[-1] * LONGEST / long.numel() < PATIENCE:
        passes.append(_rows(ids, LONGEST, context))
        seconds.append(_seconds(_run(model, passes[-1])))
    layers = len(model.geometry.attending)
    module: Any = model.module
    head = module.get_output_embeddings()
    unembedded = 0.0
    if head is not None:
        weight = head.weight
        hidden = torch.zeros(LONG, weight.shape[1], dtype=weight.dtype, device=weight.device)
        unembedded = _seconds(lambda: head(hidden).float().log_softmax(-1)) / LONG
    return PassCosts(
        tokens=tuple(ids.numel() for ids in passes),
        layer=tuple(duration / layers for duration in seconds),
        unembedded=unembedded,
        sloped=_seconds(_sloped(model, long)) / seconds[1],
        sloped_bytes=memory.peak / short.numel(),
    )


def _rows(ids: Sequence[int], size: int, context: int) -> Tensor:
    """Return so many tokens: prompts of at most `LONG`, as sweeps and captures batch them."""
    length = min(size, LONG, context)
    return torch.tensor([([*ids] * size)[:length]] * max(size // length, 1))


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
    """Return the shortest time of some runs."""
    seconds = []
    with torch.no_grad():
        for _ in range(TIMES):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return min(seconds)
