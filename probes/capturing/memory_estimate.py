"""Estimate the memory of a capture before it runs, and choose its batch size.

What a token costs in the model is measured on the model itself, in two short passes; the rest is
counted from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, memory
from headscope.kernels.api import estimate_memory as estimate_attention_memory
from headscope.kernels.errors import ResourceLimit
from headscope.probes.capturing.memory_measurement import panel_element_bytes, token_costs

if TYPE_CHECKING:
    from headscope.probes.capturing.recorder import Recorder

BATCH_TOKENS = 8192
"""Tokens of a forward pass where memory allows and nobody says otherwise."""
SHARE = 0.8
"""Share of the available memory that a batch size chosen here may need."""
TOKEN_BYTES = 80
"""Bytes that the names of a token take, as text and as a coordinate."""
SLACK = 3 << 24
"""Bytes that the allocator keeps of what was freed; measured, between 10 and 120 MB."""


@dataclass(frozen=True)
class Plan:
    """Bytes that a capture needs.

    Attributes
    ----------
    weights
        Weights of the model, there already.
    forward
        Activations of the largest batch, at most at once, attention aside.
    attention
        What one layer's attention adds: its statistics and the panels they are made in, together
        with the activations that wait for them.
    statistics, kept
        Arrays of all statistics and of all activations kept, over all prompts.
    names
        Coordinates: token ids and words.
    streamed
        Whether the arrays go to a file.
    written
        What one batch writes into a mapped file before it lets go; 0 without a file.
    batch_tokens
        Tokens in one forward pass, at most.
    device
        Where the model runs; forward pass and attention are taken from its memory.
    available, device_available
        What may still be taken of the machine's memory and of the device's.
    shape
        Numbers of prompts, of tokens of the longest, of layers and heads.
    """

    weights: int
    forward: int
    attention: int
    statistics: int
    kept: int
    names: int
    streamed: bool
    written: int
    batch_tokens: int
    device: str
    available: int
    device_available: int
    shape: tuple[int, int, int, int]

    @property
    def passing(self) -> int:
        """Bytes of one forward pass with its capture, at most at once, beyond the weights."""
        return max(self.forward, self.attention)

    @property
    def memory(self) -> int:
        """Bytes of the machine's memory at the peak, beyond the model."""
        arrays = self.written if self.streamed else self.statistics + self.kept
        return SLACK + self.names + arrays + (self.passing if self.device == "cpu" else 0)

    @property
    def device_memory(self) -> int:
        """Bytes of the device's memory at the peak, beyond the model; 0 on the processor."""
        return 0 if self.device == "cpu" else self.passing

    @property
    def disk(self) -> int:
        """Bytes of the file; 0 without one."""
        return self.statistics + self.kept + self.names if self.streamed else 0

    def fits(self, share: float = 1.0) -> bool:
        """Whether a share of the available memory is enough."""
        on_device = self.device_memory <= share * self.device_available
        return on_device and self.memory <= share * self.available

    def check(self) -> None:
        """Refuse what cannot fit, with the numbers."""
        arrays = self.statistics + self.kept
        if not self.streamed and self.memory > self.available and arrays > self.passing:
            raise ResourceLimit(
                f"memory: {format_bytes(arrays)} of statistics and kept activations and "
                f"{format_bytes(self.passing)} of a forward pass, but "
                f"{format_bytes(self.available)} are available; write to a file with out=FILE, or "
                "ask for fewer statistics, kept activations or prompts, or for bins=N"
            )
        if not self.fits():
            available = self.available if self.device == "cpu" else self.device_available
            raise ResourceLimit(
                f"memory: a forward pass of {self.batch_tokens} tokens needs "
                f"{format_bytes(max(self.memory, self.device_memory))} beyond the model, but "
                f"{format_bytes(available)} are available; give fewer batch_tokens, shorter "
                "prompts, or fewer statistics"
            )

    def __str__(self) -> str:
        """Format the numbers as a table."""
        prompts, longest, layers, heads = self.shape
        medium = "on disk" if self.streamed else "in memory"
        rows = [
            ("weights of the model", self.weights, "there already"),
            ("forward pass", self.forward, f"{self.batch_tokens} tokens at most, {self.device}"),
            ("attention of one layer", self.attention, "with the activations that wait for it"),
            ("statistics", self.statistics, medium),
            ("kept activations", self.kept, medium),
            ("names of tokens", self.names, medium),
            ("kept by the allocator", SLACK, "about"),
            ("peak beyond the model", self.memory, f"{format_bytes(self.available)} available"),
        ]
        if self.device != "cpu":
            device_note = f"{format_bytes(self.device_available)} available"
            rows.append((f"peak on {self.device}", self.device_memory, device_note))
        if self.streamed:
            rows.append(("file", self.disk, ""))
        title = f"{prompts} prompts of up to {longest} tokens, {layers} layers × {heads} heads"
        lines = [f"{name:24}{format_bytes(number):>10}  {note}" for name, number, note in rows]
        return "\n".join([title, *lines])


def estimate_memory(recorder: Recorder, batch_tokens: int | None, *, streamed: bool) -> Plan:
    """Estimate the memory of a capture, and choose the batch size where none is given.

    The largest that needs at most 80 % of the available memory, 8192 tokens at most; the longest
    prompt where none does.
    """
    if batch_tokens is not None:
        return _estimate(recorder, int(batch_tokens), streamed)
    longest = max(_tokens(recorder, row) for row in range(len(recorder.prompts.ids)))
    tokens = BATCH_TOKENS
    while True:
        plan = _estimate(recorder, tokens, streamed)
        if plan.fits(SHARE) or tokens <= longest:
            return plan
        tokens = max(tokens // 2, longest)


def _estimate(recorder: Recorder, batch_tokens: int, streamed: bool) -> Plan:
    """Estimate the memory of a capture in batches of one size."""
    model, ids, writer = recorder.model, recorder.prompts.ids, recorder.writer
    costs = token_costs(model, recorder.prompts)
    elements = {name: math.prod(shape[1:]) for name, shape in writer.shapes.items()}
    forward = attention = written = 0
    for rows in _largest_batches(recorder, batch_tokens):
        tokens = len(rows) * max(_tokens(recorder, row) for row in rows)
        forward = max(forward, costs.base + costs.peak * tokens)
        waiting = costs.base + costs.waiting * tokens
        attention = max(attention, waiting + _layer_bytes(recorder, rows))
        if streamed:
            written = max(written, 4 * len(rows) * sum(elements.values()))
    kept = sum(4 * len(ids) * elements[name] for name in recorder.options.keep)
    device = model.device
    on_device = device.type == "cuda"
    return Plan(
        weights=sum(part.numel() * part.element_size() for part in model.module.parameters()),
        forward=forward,
        attention=attention,
        statistics=4 * len(ids) * sum(elements.values()) - kept,
        kept=kept,
        names=len(ids) * writer.longest * TOKEN_BYTES,
        streamed=streamed,
        written=written,
        batch_tokens=batch_tokens,
        device=str(device) if on_device else "cpu",
        available=memory.available(),
        device_available=torch.cuda.mem_get_info(device)[0] if on_device else 0,
        shape=(len(ids), writer.longest, model.layers, model.heads),
    )


def _tokens(recorder: Recorder, row: int) -> int:
    """Count the tokens of a prompt, its source included."""
    prompts = recorder.prompts
    return len(prompts.ids[row]) + (len(prompts.sources[row]) if prompts.sources else 0)


def _largest_batches(recorder: Recorder, batch_tokens: int) -> list[list[int]]:
    """List the batches that may need most: of most tokens, and of the longest prompt."""
    batches = recorder.batches(batch_tokens)
    longest = [max(_tokens(recorder, row) for row in rows) for rows in batches]
    numbers = range(len(batches))
    most = max(numbers, key=lambda number: len(batches[number]) * longest[number])
    return [batches[most], batches[max(numbers, key=longest.__getitem__)]]


def _layer_bytes(recorder: Recorder, rows: Sequence[int]) -> int:
    """Count the bytes of one layer's statistics of a batch, and of the panels they come from."""
    geometry, options, prompts = recorder.model.geometry, recorder.options, recorder.prompts
    count = len(rows)
    queries = max(len(prompts.ids[row]) for row in rows)
    keys = max(len(prompts.keys[row]) for row in rows)
    sizes = recorder.writer.sizes(queries, keys)
    elements = queries * geometry.value_size
    for name in options.stats:
        elements += math.prod(sizes[dim] for dim in statistics.load(name).dims)
    nothing = torch.zeros(1)

    def stand_in(heads: int, length: int, size: int) -> Tensor:
        return nothing.expand(count, heads, length, size)

    needed = estimate_attention_memory(
        stand_in(geometry.heads, queries, geometry.head_size),
        stand_in(geometry.kv_heads, keys, geometry.head_size),
        stand_in(geometry.kv_heads, keys, geometry.value_size),
        options.stats,
        Request(stats=(), tile=options.request.tile, k=options.request.k),
        AttentionSpec(causal=not prompts.crossed),
    )
    element = panel_element_bytes(
        options.request_for(None, None),
        options.stats,
        len(recorder.target_names),
        (geometry.head_size, geometry.value_size),
    )
    worker = needed.worker_bytes + needed.panel_elements * element
    return 4 * count * geometry.heads * elements + math.ceil(needed.workers * worker)


def format_bytes(count: int) -> str:
    """Write a number of bytes.

    >>> format_bytes(1_240_000_000), format_bytes(36_000)
    ('1.24 GB', '0.036 MB')
    """
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
