"""Measure the memory of tensors: of a model for each token, and of statistics for each weight."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headscope.kernels.api import PLAIN, Request, attend, estimate_memory
from headscope.probes.attention.forward import Reader, run

if TYPE_CHECKING:
    from headscope.probes.attention.interface import AttentionCall
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

PROBE = 128
"""Tokens of the longer of the two passes that are measured."""
TEXT = 512
"""Tokens of the attention call whose panels are measured."""
POSITIONS = ("stats", "targets", "spans")
"""Fields of a request that the measurement sets itself."""


class PeakTensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors made inside and still alive, of this thread.

    ``now`` and ``peak`` are the bytes alive now, and the most at once; ``largest`` the elements of
    the largest tensor made, four bytes being one.

    >>> with PeakTensorBytes() as memory:
    ...     zeros = torch.zeros(1000)
    >>> memory.peak
    4000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest = 0
        self._alive: dict[int, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the bytes it allocated."""
        inputs = {
            value.untyped_storage().data_ptr()
            for value in tree_leaves((args, kwargs))
            if isinstance(value, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self._count(value, inputs)
        return result

    def _count(self, tensor: torch.Tensor, inputs: set[int]) -> None:
        self.largest = max(self.largest, tensor.nbytes // max(tensor.element_size(), 4))
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        # A view of something older than the count, such as a weight, takes nothing.
        if address in inputs and address not in self._alive:
            return
        entry = self._alive.setdefault(address, [0, storage.nbytes()])
        if entry[0] == 0:
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        entry[0] += 1
        weakref.finalize(tensor, self._release, address)

    def _release(self, address: int) -> None:
        entry = self._alive[address]
        entry[0] -= 1
        if entry[0] == 0:
            self.now -= entry[1]
            del self._alive[address]


@dataclass(frozen=True)
class TokenCosts:
    """Bytes of the activations in a pass: ``base`` whatever its length, the others for each token.

    ``peak`` is the most at once, ``waiting`` what is alive while a layer attends.
    """

    base: int
    peak: int
    waiting: int


_token_costs: weakref.WeakKeyDictionary[nn.Module, TokenCosts] = weakref.WeakKeyDictionary()
_element_bytes: dict[tuple[Any, ...], float] = {}


def token_costs(model: Model, prompts: Prompts) -> TokenCosts:
    """Measure what a token costs in a model, once for each model."""
    if model.module not in _token_costs:
        _token_costs[model.module] = _measure_tokens(model, prompts)
    return _token_costs[model.module]


def _measure_tokens(model: Model, prompts: Prompts) -> TokenCosts:
    """Measure a pass of few tokens and one of more."""
    if prompts.pixels is not None:
        # Every image has as many tokens.
        length = len(prompts.ids[0])
        peak, waiting = _measure_pass(model, prompts)
        return TokenCosts(0, -(-peak // length), -(-waiting // length))
    length = min(PROBE, model.context or PROBE)
    measured = []
    for tokens in (length // 2, length):
        # A pair has its tokens in both of its texts.
        count = tokens // 2 if prompts.sources else tokens
        parts = [(part[0] * tokens)[:count] for part in (prompts.ids, prompts.sources) if part]
        brief = replace(prompts, ids=(parts[0],), sources=tuple(parts[1:]))
        measured.append(_measure_pass(model, brief))
    step = length - length // 2
    (few, few_waiting), (many, many_waiting) = measured
    peak = -(-(many - few) // step)
    return TokenCosts(max(many - peak * length, 0), peak, -(-(many_waiting - few_waiting) // step))


def _measure_pass(model: Model, prompts: Prompts) -> tuple[int, int]:
    """Run the first prompt without attention: bytes at most, and while a layer attends."""
    idle = _Idle(Request(stats=()))
    with torch.no_grad(), PeakTensorBytes() as idle.memory:
        run(model, prompts.stack([0]), idle, head=False)
    return idle.memory.peak, idle.waiting


class _Idle(Reader):
    """Return zeros for attention, and record the memory in use at that moment."""

    memory: PeakTensorBytes
    waiting = 0

    def __call__(self, call: AttentionCall) -> Tensor:
        self.layers.append(call.layer)
        self.waiting = max(self.waiting, self.memory.now)
        return call.query.new_zeros(*call.query.shape[:3], call.value.shape[3])


def panel_element_bytes(
    request: Request, stats: tuple[str, ...], targets: int, sizes: tuple[int, int]
) -> float:
    """Measure the bytes that an element of a panel takes with all that statistics make of it.

    Measured once for the same statistics, parameters, number of targets and sizes of a key and a
    value.
    """
    # A pattern is no more than its panel.
    small = tuple(name for name in stats if name != "pattern")
    parameters = [field.name for field in fields(Request) if field.name not in POSITIONS]
    key = (small, targets, sizes, *(getattr(request, name) for name in parameters))
    if key not in _element_bytes:
        _element_bytes[key] = _measure_element(request, stats, small, targets, sizes)
    return _element_bytes[key]


def _measure_element(
    request: Request,
    stats: tuple[str, ...],
    small: tuple[str, ...],
    targets: int,
    sizes: tuple[int, int],
) -> float:
    """Run the attention of one head, which is one part, so in this thread, which is counted."""
    length = max(TEXT, request.tile)
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, length, sizes[0], generator=draw) for _ in range(2))
    v = torch.randn(1, 1, length, sizes[1], generator=draw)
    request = replace(
        request,
        stats=small,
        targets=torch.full((1, max(targets, 1), length, 1), -1),
        spans=torch.zeros(1, length, dtype=torch.long),
    )
    with PeakTensorBytes() as memory:
        outputs = attend(q, k, v, request)
    extra: int = memory.peak - sum(output.nbytes for output in outputs.values())
    panel = Request(stats=(), tile=request.tile, k=request.k)
    return extra / estimate_memory(q, k, v, stats, panel, PLAIN).panel_elements
