"""A recording: the arrays of one capture, filled in place while the model runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import Call
from headscope.probes.attention.residual_stream import watching
from headscope.probes.capturing import binning, labels, position_biases
from headscope.probes.capturing import spans as named_spans
from headscope.probes.capturing import targets as rules
from headscope.probes.capturing.batching import grouped, pad
from headscope.probes.capturing.variables import KEPT, attrs_of
from headscope.probes.interventions.base import Edit
from headscope.probes.prompts.prompt_batch import Prompts

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.storage.incremental import Stream


@dataclass
class Recording:
    """What is recorded, and the arrays that hold it; NaN until written."""

    model: Model
    prompts: Prompts
    stats: tuple[str, ...]
    keep: tuple[str, ...]
    edits: tuple[Edit, ...]
    first: int
    offsets: tuple[int, ...]
    targets: Any
    tile: int
    clip: int | None
    recent: int
    share: float
    k: int
    horizon: tuple[int, int]
    last: int
    spans: Any
    bins: int | None = None
    padding: str = "none"
    sizes: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    layout: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    keys: list[list[rules.Keys]] = field(default_factory=list)
    per_layer: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    found: named_spans.Spans | None = None
    sinks: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    biases: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    slopes: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Find targets and spans, and refuse bad options before anything is allocated."""
        if self.shapes:
            return
        if "target_mass" in self.stats:
            self.names, self.keys = rules.collect(self.targets, self.prompts)
        if "span_mass" in self.stats:
            self.found = named_spans.collect(self.spans, self.prompts)
        self.request(None, ())
        binning.check(self.bins, self.stats, self.keep, crossed=self.prompts.crossed)
        self._shapes()

    def marks(self) -> str:
        """Name, by their hash, the positions of targets and spans, which the Dataset leaves out."""
        spans = self.found
        numbers = [] if spans is None else [one.tolist() for one in spans.numbers]
        members = [] if spans is None else spans.members.tolist()
        told = json.dumps([self.keys, numbers, members, list(self.offsets)])
        return hashlib.sha256(told.encode()).hexdigest()

    def allocate(self) -> None:
        """Make the arrays in memory, NaN everywhere."""
        self.prepare()
        for name, shape in self.shapes.items():
            self.arrays[name] = np.full(shape, np.nan, dtype=np.float32)

    def lay_out(self) -> None:
        """Stand in for the arrays, and ask the model what holds for its layers, in a few tokens."""
        self.prepare()
        for name, shape in self.shapes.items():
            self.arrays[name] = np.broadcast_to(np.float32(np.nan), shape)
        take = Reader(Request(stats=()), (), lambda call, outputs, z: self.note(call))
        # From a single token no slope can be read.
        brief = replace(
            self.prompts,
            ids=(max(self.prompts.ids, key=len)[:8],),
            sources=tuple(one[:1] for one in self.prompts.sources[:1]),
        )
        with torch.no_grad():
            run(self.model, brief.stack([0]), take, head=False)
            if self.biases:  # a bias is noted as far as the longest prompt reaches
                row = max(range(len(self.prompts.ids)), key=lambda at: len(self.prompts.ids[at]))
                run(self.model, self.prompts.stack([row]), take, head=False)

    def record(
        self,
        batch_tokens: int,
        progress: Callable[[int, int], None] | None,
        stream: Stream | None = None,
    ) -> None:
        """Run all prompts, in batches of one length, and fill the arrays."""
        if stream is not None:
            self.arrays = stream.arrays
        keys = self.keys
        done, total = 0, len(self.prompts.ids)
        with torch.no_grad():
            for number, rows in enumerate(self.batches(batch_tokens)):
                if stream is not None and number in stream.done:
                    done += len(rows)
                    continue
                packed = rules.pack([keys[row] for row in rows]) if keys else None
                self._record_batch(rows, packed)
                if stream is not None:
                    stream.commit(number)
                done += len(rows)
                if progress is not None:
                    progress(done, total)

    def batches(self, tokens: int) -> list[list[int]]:
        """Group the prompts into batches of at most ``tokens`` tokens, or one prompt.

        Lengths differ where the model takes padding; not with edits, which may count from the end.
        """
        found, self.padding = grouped(self.model, self.prompts, tokens, alike=bool(self.edits))
        return found

    def extents(self, queries: int, keys: int) -> dict[str, int]:
        """Count the places along every dim of a prompt of so many queries and keys."""
        if (queries, keys) not in self.sizes:
            self.sizes[queries, keys] = self._extents(queries, keys)
        return self.sizes[queries, keys]

    def _extents(self, queries: int, keys: int) -> dict[str, int]:
        model = self.model
        sizes = {
            "query": queries,
            "key": keys,
            "query_tile": -(-queries // self.tile),
            "key_tile": -(-keys // self.tile),
            "size": model.head_size,
            "value_size": model.geometry.value_size,
            "channel": model.module.config.get_text_config().hidden_size,
        }
        return sizes | {
            dim: len(labels) for dim, labels in self._labels(max(queries, keys)).items()
        }

    @property
    def width(self) -> int:
        """Tokens in a bin of queries or keys."""
        return binning.width_of(self.bins, self.longest)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt, queries or keys."""
        return max(self.prompts.longest)

    def _shapes(self) -> None:
        model = self.model
        queries, keys = self.prompts.longest
        sizes = self.extents(queries, keys) | {
            "query": -(-queries // self.width),
            "key": -(-keys // self.width),
            "prompt": len(self.prompts.ids),
            "layer": model.layers,
            "boundary": model.layers + 1,
            "head": model.heads,
            "kv_head": model.kv_heads,
        }
        for name in self.stats:
            dims = ("prompt", "layer", "head", *statistics.load(name).dims)
            self._reserve(name, dims, sizes)
        for name in self.keep:
            dims = ("prompt", "boundary" if name == "resid" else "layer", *KEPT[name][1])
            if name in ("v", "z") and model.geometry.value_size != model.head_size:
                dims = (*dims[:-1], "value_size")
            self._reserve(name, dims, sizes)
        for name in ("causal", "logit_scale", "window", "softcap"):
            self.per_layer[name] = np.full(model.layers, np.nan)

    def _reserve(self, name: str, dims: tuple[str, ...], sizes: dict[str, int]) -> None:
        self.layout[name] = dims
        self.shapes[name] = tuple(sizes[dim] for dim in dims)

    def _labels(self, length: int) -> dict[str, Sequence[Any]]:
        """Find the labels along the dims that the statistics bring to a prompt of some length."""
        request = self.request(None, ())
        declared = [statistics.load(name).labels for name in self.stats]
        labels = {dim: of(request, length) for one in declared for dim, of in one.items()}
        named = {"target": self.names, "span": self.found.names if self.found else []}
        return {dim: named.get(dim, places) for dim, places in labels.items()}

    def request(self, packed: npt.NDArray[np.int64] | None, rows: Sequence[int]) -> Request:
        """Ask for the statistics of some prompts, given the packed keys of their targets."""
        spans = self.found.pack(rows) if self.found and rows else None
        without = {"target_mass": packed is None, "span_mass": spans is None}
        stats = tuple(name for name in self.stats if not without.get(name))
        return Request(
            stats=stats,
            first=self.first,
            offsets=self.offsets,
            targets=None if packed is None else torch.from_numpy(packed).to(self.model.device),
            tile=self.tile,
            clip=self.clip,
            recent=self.recent,
            spans=spans,
            share=self.share,
            k=self.k,
            horizon=self.horizon,
            last=self.last,
        )

    def _record_batch(self, rows: Sequence[int], packed: npt.NDArray[np.int64] | None) -> None:
        if self.prompts.sources or self.prompts.pixels is not None:
            ids, mask = self.prompts.stack(rows), None
        else:
            ids, mask = pad(self.model, [self.prompts.ids[row] for row in rows])
        request = self.request(packed, rows)

        def take(call: Call, outputs: dict[str, Tensor], z: Tensor) -> None:
            for name in self.stats:
                values = outputs[name]
                if name == "span_mass" and self.found is not None:
                    values = self.found.add(rows, values)
                self._write(name, rows, call.layer, values)
            kept = {"q": call.query, "k": call.key, "v": call.value, "z": z}
            for name in self.keep:
                if name in kept:
                    self._write(name, rows, call.layer, kept[name])
            self.note(call)

        reader = Reader(request, self.edits, take)
        if "resid" in self.keep:
            with watching(self.model, partial(self._write, "resid", rows)):
                run(self.model, ids, reader, head=False, mask=mask)
        else:
            run(self.model, ids, reader, head=False, mask=mask)

    def note(self, call: Call) -> None:
        """Keep what holds for a whole layer."""
        self.per_layer["logit_scale"][call.layer] = call.scale
        self.per_layer["causal"][call.layer] = call.causal
        if call.sinks is not None:
            self.sinks[call.layer] = call.sinks.cpu().numpy()
        if call.bias is not None and {"q", "k"} <= set(self.keep):
            found = position_biases.by_distance(call.bias)
            if found.shape[1] > self.biases.get(call.layer, found[:, :0]).shape[1]:
                self.biases[call.layer] = found
        if call.slopes is not None and (call.key.shape[2] > 1 or call.layer not in self.slopes):
            self.slopes[call.layer] = call.slopes.cpu().numpy()
        for name, value in (("window", call.window), ("softcap", call.softcap)):
            if value is not None:
                self.per_layer[name][call.layer] = value

    def _write(self, name: str, rows: Sequence[int], at: int, values: Tensor) -> None:
        found = values.detach().to("cpu", torch.float32).numpy()
        dims = self.layout[name][2:]
        for row, one in zip(rows, found, strict=True):
            # A batch is as long as its longest prompt.
            sizes = self.extents(len(self.prompts.ids[row]), len(self.prompts.keys[row]))
            real = one[tuple(slice(0, sizes.get(dim)) for dim in dims)]
            if name in self.stats:
                real = binning.collect(name, real, dims, self.width)
            self.arrays[name][row, at][tuple(slice(0, size) for size in real.shape)] = real

    @property
    def reweighted(self) -> bool:
        """Whether an edit changes weights, so that q, k and lse do not tell them."""
        return any(type(edit).inside is not Edit.inside for edit in self.edits)

    def dataset(self) -> xr.Dataset:
        """Lay names, coords and attrs over the arrays; nothing is copied."""
        variables = {
            name: (dims, self.arrays[name], attrs_of(name)) for name, dims in self.layout.items()
        }
        return xr.Dataset(variables, coords=self._coords())

    def _coords(self) -> dict[str, Any]:
        model = self.model
        group = model.heads // model.kv_heads
        coords: dict[str, Any] = {
            "layer": np.arange(model.layers),
            "head": np.arange(model.heads),
            "kv_group": ("head", np.arange(model.heads) // group),
            **binning.beside(labels.coords(model, self.prompts), self.width),
            **{name: ("layer", values) for name, values in self.per_layer.items()},
            "causal": ("layer", self.per_layer["causal"] > 0),
        }
        if model.geometry.without:
            attending = np.isin(np.arange(model.layers), model.geometry.attending)
            coords["attention_map"] = ("layer", attending)
        if self.sinks:
            coords["sink_logit"] = labels.sink_logits(model, self.sinks)
        if self.biases:
            coords.update(position_biases.coords(model, self.biases))
        if self.slopes:
            rates = np.zeros((model.layers, model.heads), dtype=np.float32)
            for layer, values in self.slopes.items():
                rates[layer] = values
            coords["alibi_slope"] = (("layer", "head"), rates)
        used = {dim for dims in self.layout.values() for dim in dims}
        if self.width > 1:
            starts = np.arange(0, self.longest, self.width)
            coords.update({dim: starts for dim in binning.DIMS if dim in used})
        if "kv_head" in used:
            coords["kv_head"] = np.arange(model.kv_heads)
        coords.update({dim: np.array(labels) for dim, labels in self._labels(self.longest).items()})
        return coords
