"""Run a model over prompts and record statistics and activations of every layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import xarray as xr
from torch import Tensor

from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.attention.residual_stream import watching
from headscope.probes.capturing import spans as spans_module
from headscope.probes.capturing import targets as targets_module
from headscope.probes.capturing.array_writer import ArrayWriter
from headscope.probes.capturing.batching import grouped, pad
from headscope.probes.capturing.dataset import LayerCoords, build_dataset
from headscope.probes.capturing.options import CaptureOptions

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts
    from headscope.probes.storage.incremental import Stream


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
        alike = bool(self.options.edits)
        rows, self.padding = grouped(self.model, self.prompts, tokens, alike=alike)
        return rows

    def scan_layers(self) -> None:
        """Note what holds for the layers from a few tokens, before anything is recorded."""
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
        """Run all prompts, in batches of one length, and fill the arrays."""
        if stream is not None:
            self.writer.arrays = stream.arrays
        done, total = 0, len(self.prompts.ids)
        with torch.no_grad():
            for number, rows in enumerate(self.batches(batch_tokens)):
                done += len(rows)
                if stream is not None and number in stream.done:
                    continue
                self._record_batch(rows)
                if stream is not None:
                    stream.commit(number)
                if progress is not None:
                    progress(done, total)

    def _record_batch(self, rows: Sequence[int]) -> None:
        """Run some prompts together and write what every layer hands over."""
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

        reader = Reader(request, options.edits, take)
        if "resid" in options.keep:
            with watching(self.model, partial(writer.write, "resid", rows)):
                run(self.model, ids, reader, head=False, mask=mask)
        else:
            run(self.model, ids, reader, head=False, mask=mask)

    def dataset(self) -> xr.Dataset:
        """Build the Dataset over the arrays; nothing is copied."""
        return build_dataset(self.writer, self.layers, self.padding)
