"""Cost: what a recording takes, before it runs.

What a token costs in the model is measured on the model itself, in two short passes; the rest is
counted from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headscope.kernels import statistics
from headscope.kernels.api import (
    PLAIN,
    AttentionSpec,
    MemoryEstimate,
    Request,
    attend,
    estimate_memory,
    memory,
)
from headscope.probes.attention.forward import Reader, run
from headscope.probes.capturing.memory_estimate import Plan
from headscope.probes.capturing.peak_memory import Meter

if TYPE_CHECKING:
    from headscope.probes.attention.interface import Call
    from headscope.probes.capturing.recorder import Recording
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

BATCH_TOKENS = 8192
"""Tokens of a forward pass where memory allows and nobody says otherwise."""
SHARE = 0.8
"""Share of the available memory that a batch size chosen here may need."""
PROBE = 128
"""Tokens of the longer of the two passes that are measured."""
TEXT = 512
"""Tokens of the attention call whose panels are measured."""
NAMES = 80
"""Bytes that the names of a token take, as text and as a coordinate."""


def weigh(recording: Recording, batch_tokens: int | None, *, streamed: bool) -> Plan:
    """Weigh a recording that is prepared, and choose the batch size where none is given.

    The largest that needs at most 80 % of the available memory, 8192 tokens at most; the longest
    prompt where none does.
    """
    longest = max(_tokens(recording, row) for row in range(len(recording.prompts.ids)))
    if batch_tokens is not None:
        return _weigh(recording, int(batch_tokens), streamed)
    tokens = BATCH_TOKENS
    while True:
        found = _weigh(recording, tokens, streamed)
        if found.fits(SHARE) or tokens <= longest:
            return found
        tokens = max(tokens // 2, longest)


def _weigh(recording: Recording, batch_tokens: int, streamed: bool) -> Plan:
    model, ids = recording.model, recording.prompts.ids
    longest = recording.longest
    costs = _costs(recording)
    forward = attention = written = 0
    for rows in _largest(recording, batch_tokens):
        count = len(rows)
        tokens = count * max(_tokens(recording, row) for row in rows)
        forward = max(forward, costs.base + costs.peak * tokens)
        held = costs.base + costs.held * tokens
        attention = max(attention, held + _layer(recording, rows))
        if streamed:
            written = max(written, 4 * count * sum(_each(recording).values()))
    each = _each(recording)
    kept = sum(4 * len(ids) * each[name] for name in recording.keep)
    total = sum(4 * len(ids) * number for number in each.values())
    device = model.device
    on_device = device.type == "cuda"
    return Plan(
        weights=sum(one.numel() * one.element_size() for one in model.module.parameters()),
        forward=forward,
        attention=attention,
        statistics=total - kept,
        kept=kept,
        names=len(ids) * longest * NAMES,
        streamed=streamed,
        written=written,
        batch_tokens=batch_tokens,
        device=str(device) if on_device else "cpu",
        available=memory.available(),
        device_available=torch.cuda.mem_get_info(device)[0] if on_device else 0,
        shape=(len(ids), longest, model.layers, model.heads),
    )


def _tokens(recording: Recording, row: int) -> int:
    """Count the tokens of a prompt, its source included."""
    prompts = recording.prompts
    return len(prompts.ids[row]) + (len(prompts.sources[row]) if prompts.sources else 0)


def _largest(recording: Recording, batch_tokens: int) -> Iterator[list[int]]:
    """Yield the rows of the batches that may need most."""
    found = recording.batches(batch_tokens)
    longest = [max(_tokens(recording, row) for row in rows) for rows in found]
    yield max(zip(found, longest, strict=True), key=lambda one: len(one[0]) * one[1])[0]
    yield max(zip(found, longest, strict=True), key=lambda one: one[1])[0]


def _each(recording: Recording) -> dict[str, int]:
    """Count the elements of one prompt in every array."""
    return {name: math.prod(shape[1:]) for name, shape in recording.shapes.items()}


def _layer(recording: Recording, rows: Sequence[int]) -> int:
    """Count the bytes of one layer's statistics of a batch, and of the panels they come from."""
    shape = recording.model.geometry
    count = len(rows)
    queries = max(len(recording.prompts.ids[row]) for row in rows)
    keys = max(len(recording.prompts.keys[row]) for row in rows)
    outputs = 4 * count * _elements(recording, shape.heads, queries, keys)
    nothing = torch.zeros(1)

    def stand_in(heads: int, length: int, size: int) -> Tensor:
        return nothing.expand(count, heads, length, size)

    q = stand_in(shape.heads, queries, shape.head_size)
    k = stand_in(shape.kv_heads, keys, shape.head_size)
    v = stand_in(shape.kv_heads, keys, shape.value_size)
    spec = AttentionSpec(causal=not recording.prompts.crossed)
    needed = _estimate(recording, q, k, v, spec)
    beside = needed.worker_bytes + needed.panel_elements * _by_element(recording)
    return outputs + math.ceil(needed.workers * beside)


def _estimate(
    recording: Recording, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec
) -> MemoryEstimate:
    """Count the memory of an attention call of this recording."""
    request = Request(stats=(), tile=recording.tile, k=recording.request(None, ()).k)
    return estimate_memory(q, k, v, recording.stats, request, spec)


def _small(recording: Recording) -> tuple[str, ...]:
    """List the statistics of panels; a pattern is no more than its panel."""
    return tuple(name for name in recording.stats if name != "pattern")


def _elements(recording: Recording, heads: int, queries: int, keys: int) -> int:
    """Count the elements of one layer's statistics, ``z`` included, of one prompt."""
    sizes = recording.extents(queries, keys)
    dims = [statistics.load(name).dims for name in recording.stats]
    each = [math.prod(sizes[dim] for dim in one) for one in dims]
    return heads * (sum(each) + queries * recording.model.geometry.value_size)


def _by_element(recording: Recording) -> float:
    """Measure the bytes that an element of a panel takes with all that statistics make of it."""
    shape = recording.model.geometry
    length = max(TEXT, recording.tile)
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, length, shape.head_size, generator=draw) for _ in range(2))
    v = torch.randn(1, 1, length, shape.value_size, generator=draw)
    none = torch.full((1, max(len(recording.names), 1), length, 1), -1)
    request = replace(
        recording.request(None, ()),
        stats=_small(recording),
        targets=none,
        spans=torch.zeros(1, length, dtype=torch.long),
    )
    # One head is one part, so it runs in this thread, which the meter sees.
    with Meter() as meter:
        outputs = attend(q, k, v, request)
    made: int = sum(one.nbytes for one in outputs.values())
    beside: int = meter.peak - made
    return beside / _estimate(recording, q, k, v, PLAIN).panel_elements


@dataclass(frozen=True)
class Costs:
    """Bytes of the activations in a pass: whatever its length, and a token."""

    base: int
    peak: int
    held: int


_known: WeakKeyDictionary[nn.Module, Costs] = WeakKeyDictionary()


def _costs(recording: Recording) -> Costs:
    """Measure what a token costs in the model, once for each model."""
    model = recording.model
    if model.module not in _known:
        _known[model.module] = _measure(model, recording.prompts)
    return _known[model.module]


def _measure(model: Model, prompts: Prompts) -> Costs:
    if prompts.pixels is not None:
        # Every image has as many tokens.
        length = len(prompts.ids[0])
        peak, held = _pass(model, prompts)
        return Costs(0, -(-peak // length), -(-held // length))
    length = min(PROBE, model.context or PROBE)
    found = []
    for tokens in (length // 2, length):
        # A pair has its tokens in both of its texts.
        each = tokens // 2 if prompts.sources else tokens
        parts = [(part[0] * tokens)[:each] for part in (prompts.ids, prompts.sources) if part]
        brief = replace(prompts, ids=(parts[0],), sources=tuple(parts[1:]))
        found.append(_pass(model, brief))
    step = length - length // 2
    (few, few_held), (many, many_held) = found
    peak = -(-(many - few) // step)
    return Costs(max(many - peak * length, 0), peak, -(-(many_held - few_held) // step))


def _pass(model: Model, prompts: Prompts) -> tuple[int, int]:
    """Run the first prompt without attention: bytes at most, and while a layer attends."""
    idle = _Idle(Request(stats=()))
    with torch.no_grad(), Meter() as idle.meter:
        run(model, prompts.stack([0]), idle, head=False)
    return idle.meter.peak, idle.held


class _Idle(Reader):
    """Answer attention with zeros, and note what is in memory at that moment."""

    meter: Meter
    held = 0

    def __call__(self, call: Call) -> Tensor:
        self.layers.append(call.layer)
        self.held = max(self.held, self.meter.now)
        return call.query.new_zeros(*call.query.shape[:3], call.value.shape[3])
