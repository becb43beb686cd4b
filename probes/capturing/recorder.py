"""Run a model over prompts and record statistics and activations of every layer.

Prompts share batches, padded where a test shows that it changes no number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.attention.load_check import compared, prompt
from headscope.probes.attention.residual_stream import watching
from headscope.probes.capturing import spans as spans_module
from headscope.probes.capturing import targets as targets_module
from headscope.probes.capturing.array_writer import ArrayWriter
from headscope.probes.capturing.dataset import LayerCoords, build_dataset
from headscope.probes.capturing.options import CaptureOptions
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts
    from headscope.probes.storage.incremental import Stream

WASTE = 0.1
"""Largest share of a batch that is padding."""
EXACT, HALF = 1e-5, 1e-2
"""What padding may change of a number, of the largest where that is above 1."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Recorder:
    """One capture: finds targets and spans, runs the model and writes what arrives.

    Nothing is allocated until `ArrayWriter.allocate` is called.
    """

    def __init__(self, model: Model, prompts: Prompts, options: CaptureOptions) -> None:
        self.model, self.prompts, self.options = model, prompts, options
        self.target_names: list[str] = []
        self.target_keys: list[list[targets_module.Keys]] = []
        self.spans: spans_module.Spans | None = None
        if "target_mass" in options.stats:
            self.target_names, self.target_keys = targets_module.collect(options.targets, prompts)
        if "span_mass" in options.stats:
            self.spans = spans_module.collect(options.spans, prompts)
        names = {"target": self.target_names, "span": self.spans.names if self.spans else []}
        self.writer = ArrayWriter(model, prompts, options, names)
        self.layers = LayerCoords(model, keeps_keys={"q", "k"} <= set(options.keep))
        self.padding = "none"

    def targets_digest(self) -> str:
        """SHA-256 of target and span positions, checked when an interrupted capture is resumed."""
        spans = self.spans
        numbers = [] if spans is None else [keys.tolist() for keys in spans.numbers]
        members = [] if spans is None else spans.members.tolist()
        text = json.dumps([self.target_keys, numbers, members, list(self.options.request.offsets)])
        return hashlib.sha256(text.encode()).hexdigest()

    def batches(self, tokens: int) -> list[list[int]]:
        """Group the prompts into batches of at most ``tokens`` tokens, or one prompt.

        Lengths differ where the model takes padding; not with edits, which may count from the end.
        """
        same_length = bool(self.options.edits)
        rows, self.padding = grouped(self.model, self.prompts, tokens, same_length=same_length)
        return rows

    def scan_layers(self) -> None:
        """Record what holds for the layers from a few tokens, before anything is recorded."""
        reader = Reader(Request(stats=()), (), lambda call, outputs, z: self.layers.note(call))
        # From a single token no slope can be read.
        brief = replace(
            self.prompts,
            ids=(max(self.prompts.ids, key=len)[:8],),
            sources=tuple(source[:1] for source in self.prompts.sources[:1]),
        )
        with torch.no_grad():
            run(self.model, brief.stack([0]), reader, head=False)
            if self.layers.biases:  # a bias is noted as far as the longest prompt reaches
                row = max(range(len(self.prompts.ids)), key=lambda at: len(self.prompts.ids[at]))
                run(self.model, self.prompts.stack([row]), reader, head=False)

    def record(
        self,
        batch_tokens: int,
        progress: Callable[[int, int], None] | None,
        stream: Stream | None = None,
    ) -> None:
        """Run all prompts, in batches of one length, and fill the arrays.

        Where there is nothing to fill, only the layers are scanned.
        """
        if stream is not None:
            self.writer.arrays = stream.arrays
        options, layers = self.options, len(self.model.geometry.attending)
        if not (options.stats or options.keep or options.edits):
            return self.scan_layers()
        lengths = [len(ids) for ids in self.prompts.ids]
        done, total = 0, layers * sum(lengths)

        def count(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total)

        with torch.no_grad():
            for number, rows in enumerate(self.batches(batch_tokens)):
                tokens = sum(lengths[row] for row in rows)
                if stream is not None and number in stream.done:
                    count(layers * tokens)
                    continue
                self._record_batch(rows, partial(count, tokens))
                if stream is not None:
                    stream.commit(number)

    def _record_batch(self, rows: Sequence[int], finish_layer: Callable[[], None]) -> None:
        """Run some prompts together and write the statistics of every layer."""
        options, writer, spans = self.options, self.writer, self.spans
        if self.prompts.sources or self.prompts.pixels is not None:
            ids, mask = self.prompts.stack(rows), None
        else:
            ids, mask = pad(self.model, [self.prompts.ids[row] for row in rows])
        targets = None
        if self.target_keys:
            packed = targets_module.pack([self.target_keys[row] for row in rows])
            targets = torch.from_numpy(packed).to(self.model.device)
        request = options.request_for(targets, spans.pack(rows) if spans else None)

        def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
            for name in options.stats:
                values = outputs[name]
                if name == "span_mass" and spans is not None:
                    values = spans.add(rows, values)
                writer.write(name, rows, call.layer, values)
            activations = {"q": call.query, "k": call.key, "v": call.value, "z": z}
            for name in options.keep:
                if name in activations:
                    writer.write(name, rows, call.layer, activations[name])
            self.layers.note(call)
            finish_layer()

        reader = Reader(request, options.edits, take)
        if "resid" in options.keep:
            with watching(self.model, partial(writer.write, "resid", rows)):
                run(self.model, ids, reader, head=False, mask=mask)
        else:
            run(self.model, ids, reader, head=False, mask=mask)

    def dataset(self) -> xr.Dataset:
        """Build the Dataset over the arrays; nothing is copied."""
        return build_dataset(self.writer, self.layers, self.padding)


def pad(
    model: Model, prompts: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"] | None]:
    """Fill prompts up on the right: token ids, and which are real; None where all are."""
    longest = max(map(len, prompts))
    filler = getattr(model.module.config.get_text_config(), "pad_token_id", None) or 0
    ids = torch.tensor([[*prompt, *[filler] * (longest - len(prompt))] for prompt in prompts])
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) < lengths[:, None]


def grouped(
    model: Model, prompts: Prompts, tokens: int, *, same_length: bool
) -> tuple[list[list[int]], str]:
    """Group prompts into batches, and say where they are padded: ``right``, or ``none``.

    Lengths in a batch differ where the model takes padding, unless they are to be alike.
    """
    ids = prompts.ids
    lengths = {len(prompt) for prompt in ids}
    mixed = len(lengths) > 1 and not same_length and model.attention == "self"
    switch = model.rope_switch if mixed else None
    # Padded beyond the switch, a short prompt would be read with the frequencies of long ones.
    mixed = mixed and (switch is None or max(lengths) <= switch)
    waste = WASTE if mixed and takes_padding(model) else 0.0
    groups = list(batches(ids, tokens, prompts.sources, waste))
    shared = any(len({len(ids[row]) for row in rows}) > 1 for rows in groups)
    return groups, "right" if waste and shared else "none"


def takes_padding(model: Model) -> bool:
    """Test, once for a model, whether padding on the right leaves its numbers as they were.

    A short and a longer prompt run together and alone. Hidden states and statistics must agree to
    1e-5, in half precision to 1e-2.
    """
    if model.module not in _known:
        _known[model.module] = _compare_padded(model)
    return _known[model.module]


def _compare_padded(model: Model) -> bool:
    ids = prompt(model)
    assert isinstance(ids, Tensor)  # only such models are asked
    long = ids[0].tolist()
    short = long[: len(long) // 2 + 1]
    if short == long:
        return False
    half = model.dtype in (torch.float16, torch.bfloat16)
    try:
        with torch.no_grad():
            together = _numbers(model, [short, long], len(short))
            alone = _numbers(model, [short], len(short))
    except HeadscopeError:
        return False
    return all(
        _agree(padded, expected, HALF if half else EXACT)
        for padded, expected in zip(together, alone, strict=True)
    )


def _numbers(model: Model, prompts: Sequence[Sequence[int]], length: int) -> list[Tensor]:
    """Run prompts together; hidden states and statistics of the first."""
    numbers: list[Tensor] = []
    names = compared(model)

    def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        numbers.extend(outputs[name][0, :, :length].double().cpu() for name in names)

    ids, mask = pad(model, prompts)
    reader = Reader(Request(stats=names), (), take)
    hidden = run(model, ids, reader, head=False, mask=mask)
    return [hidden[0, :length].double().cpu(), *numbers]


def _agree(padded: Tensor, expected: Tensor, tolerance: float) -> bool:
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    return bool(((padded - expected).abs() <= allowed).all())
