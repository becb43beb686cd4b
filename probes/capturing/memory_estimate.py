"""Plan: the bytes that a capture needs, known before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import ResourceLimit

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.prompts import reading as prompts_module


SLACK = 3 << 24
"""Bytes that the allocator keeps of what was freed; measured, between 10 and 120 MB."""


@dataclass(frozen=True)
class Plan:
    """What a capture needs, in bytes.

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

    Examples
    --------
    >>> from headscope.probes import load_model, plan
    >>> needed = plan(load_model("headscope/bundled"), [[0, 5, 6, 5]], stats=("entropy",))
    >>> needed.statistics == 4 * needed.shape[2] * needed.shape[3] * 4
    True
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
        """Tell whether a share of what is available is enough."""
        return (
            self.memory <= share * self.available
            and self.device_memory <= share * self.device_available
        )

    def check(self) -> None:
        """Refuse what cannot fit, with the numbers.

        Raises
        ------
        ResourceLimit
            Naming what is too large and what would make it smaller.
        """
        arrays = self.statistics + self.kept
        if not self.streamed and self.memory > self.available and arrays > self.passing:
            raise ResourceLimit(
                f"memory: {size(arrays)} of statistics and kept activations and "
                f"{size(self.passing)} of a forward pass, but {size(self.available)} are "
                "available; write to a file with out=FILE, or ask for fewer statistics, kept "
                "activations or prompts, or for bins=N"
            )
        if not self.fits():
            there = self.available if self.device == "cpu" else self.device_available
            raise ResourceLimit(
                f"memory: a forward pass of {self.batch_tokens} tokens needs "
                f"{size(max(self.memory, self.device_memory))} beyond the model, but {size(there)} "
                "are available; give fewer batch_tokens, shorter prompts, or fewer statistics"
            )

    def __str__(self) -> str:
        """Lay the numbers out as a table."""
        prompts, longest, layers, heads = self.shape
        place = "on disk" if self.streamed else "in memory"
        rows = [
            ("weights of the model", self.weights, "there already"),
            ("forward pass", self.forward, f"{self.batch_tokens} tokens at most, {self.device}"),
            ("attention of one layer", self.attention, "with the activations that wait for it"),
            ("statistics", self.statistics, place),
            ("kept activations", self.kept, place),
            ("names of tokens", self.names, place),
            ("kept by the allocator", SLACK, "about"),
            ("peak beyond the model", self.memory, f"{size(self.available)} available"),
        ]
        if self.device != "cpu":
            there = f"{size(self.device_available)} available"
            rows.append((f"peak on {self.device}", self.device_memory, there))
        if self.streamed:
            rows.append(("file", self.disk, ""))
        title = f"{prompts} prompts of up to {longest} tokens, {layers} layers × {heads} heads"
        return "\n".join(
            [title, *(f"{name:24}{size(number):>10}  {note}" for name, number, note in rows)]
        )


def plan(
    model: Any,
    prompts: prompts_module.Given,
    stats: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    edits: Sequence[Edit] = (),
    **options: Any,
) -> Plan:
    """Say what a capture would need, without running it.

    Parameters
    ----------
    model, prompts, stats, keep, edits, options
        As `capture`.

    Returns
    -------
    The bytes; as text, a table.

    Raises
    ------
    HeadscopeError
        As `capture`, except for what does not fit into memory.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> needed = plan(load_model("headscope/bundled"), [list(range(100))], out="big.safetensors")
    >>> needed.streamed, needed.fits()
    (True, True)
    """
    from headscope.probes.capturing.capture import capture, compose
    from headscope.probes.capturing.cost import weigh

    given = {} if stats is None else {"stats": stats}
    bound = inspect.signature(capture).bind(
        model, prompts, keep=keep, edits=edits, **given, **options
    )
    bound.apply_defaults()
    asked = bound.arguments
    recording = compose(asked)
    recording.prepare()
    return weigh(recording, asked["batch_tokens"], streamed=asked["out"] is not None)


def size(count: int) -> str:
    """Write a number of bytes.

    Examples
    --------
    >>> size(1_240_000_000), size(36_000)
    ('1.24 GB', '0.036 MB')
    """
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
