"""A recording: the arrays of one capture, filled in place while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from headscope.kernels import statistics
from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.probes import spans as named_spans
from headscope.probes import targets as rules
from headscope.probes.forward import Reader, run
from headscope.probes.prompts import Prompts, batches
from headscope.probes.seam import Call

if TYPE_CHECKING:
    from headscope.probes.edit import Edit
    from headscope.probes.model import Model

KEPT = {
    "q": ("Queries, after their rotation", ("head", "query", "size")),
    "k": ("Keys, after their rotation", ("kv_head", "key", "size")),
    "v": ("Values", ("kv_head", "key", "size")),
    "z": ("Output of every head, after the edits", ("head", "query", "size")),
    "resid": ("Residual stream before each block and after the last", ("query", "channel")),
}


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
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    layout: dict[str, tuple[str, ...]] = field(default_factory=dict)
    per_layer: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    found: named_spans.Spans | None = None
    labels: dict[str, Sequence[str]] = field(default_factory=dict)
    sinks: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    reweighted: bool = False

    def record(self, batch_tokens: int, progress: Callable[[int, int], None] | None) -> None:
        """Run all prompts, in batches of one length, and fill the arrays."""
        keys: list[list[rules.Keys]] = []
        if "target_mass" in self.stats:
            self.names, keys = rules.collect(self.targets, self.prompts)
        if "span_mass" in self.stats:
            self.found = named_spans.collect(self.spans, self.prompts)
        self._request(None, ())  # refuses bad options before anything is allocated
        self.allocate()
        done, total = 0, len(self.prompts.ids)
        with torch.no_grad():
            for rows in batches(self.prompts.ids, batch_tokens):
                ids = torch.tensor([self.prompts.ids[row] for row in rows])
                packed = rules.pack([keys[row] for row in rows]) if keys else None
                self._record_batch(rows, ids, packed)
                done += len(rows)
                if progress is not None:
                    progress(done, total)

    def allocate(self) -> None:
        """Make the arrays, NaN everywhere."""
        model = self.model
        longest = max(map(len, self.prompts.ids))
        tiles = -(-longest // self.tile)
        sizes = {
            "prompt": len(self.prompts.ids),
            "layer": model.layers,
            "boundary": model.layers + 1,
            "head": model.heads,
            "kv_head": model.kv_heads,
            "query": longest,
            "key": longest,
            "query_tile": tiles,
            "key_tile": tiles,
            "size": model.head_size,
            "value_size": model.geometry.value_size,
            "channel": model.module.config.get_text_config().hidden_size,
        }
        sizes.update({dim: len(labels) for dim, labels in self._labels().items()})
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
        self.arrays[name] = np.full([sizes[dim] for dim in dims], np.nan, dtype=np.float32)

    def _labels(self) -> dict[str, Sequence[Any]]:
        """Find the labels along the dims that the statistics bring."""
        request, longest = self._request(None, ()), max(map(len, self.prompts.ids))
        declared = [statistics.load(name).labels for name in self.stats]
        labels = {dim: of(request, longest) for one in declared for dim, of in one.items()}
        named = {"target": self.names, "span": self.found.names if self.found else []}
        named.update({dim: list(names) for dim, names in self.labels.items()})
        return {dim: named.get(dim, places) for dim, places in labels.items()}

    def _request(self, packed: npt.NDArray[np.int64] | None, rows: Sequence[int]) -> Request:
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

    def _record_batch(
        self, rows: Sequence[int], ids: Tensor, packed: npt.NDArray[np.int64] | None
    ) -> None:
        request = self._request(packed, rows)

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
            with self._residual(rows):
                run(self.model, ids, reader, head=False)
        else:
            run(self.model, ids, reader, head=False)
        self.reweighted = self.reweighted or reader.reweighted

    def note(self, call: Call) -> None:
        """Keep what holds for a whole layer."""
        self.per_layer["logit_scale"][call.layer] = call.scale
        self.per_layer["causal"][call.layer] = call.causal
        if call.sinks is not None:
            self.sinks[call.layer] = call.sinks.cpu().numpy()
        for name, value in (("window", call.window), ("softcap", call.softcap)):
            if value is not None:
                self.per_layer[name][call.layer] = value

    def _write(self, name: str, rows: Sequence[int], at: int, values: Tensor) -> None:
        found = values.detach().to("cpu", torch.float32).numpy()
        corner = tuple(slice(0, size) for size in found.shape[1:])
        for row, one in zip(rows, found, strict=True):
            self.arrays[name][row, at][corner] = one

    @contextmanager
    def _residual(self, rows: Sequence[int]) -> Iterator[None]:
        """Watch what goes into every block, and what comes out of the last."""
        parts = blocks(self.model)

        def enter(at: int) -> Any:
            def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
                self._write("resid", rows, at, args[0] if args else kwargs["hidden_states"])

            return hook

        def leave(part: nn.Module, args: Any, result: Any) -> None:
            stream = result if isinstance(result, Tensor) else result[0]
            self._write("resid", rows, len(parts), stream)

        handles = [
            part.register_forward_pre_hook(enter(at), with_kwargs=True)
            for at, part in enumerate(parts)
        ]
        handles.append(parts[-1].register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def dataset(self) -> xr.Dataset:
        """Lay names, coords and attrs over the arrays; nothing is copied."""
        variables = {
            name: (dims, self.arrays[name], _attrs(name)) for name, dims in self.layout.items()
        }
        return xr.Dataset(variables, coords=self._coords())

    def _coords(self) -> dict[str, Any]:
        model, ids = self.model, self.prompts.ids
        longest = max(map(len, ids))
        token_id = np.full((len(ids), longest), -1, dtype=np.int64)
        token = np.full((len(ids), longest), "", dtype=object)
        for row, one in enumerate(ids):
            token_id[row, : len(one)] = one
            token[row, : len(one)] = model.words(one)
        group = model.heads // model.kv_heads
        coords: dict[str, Any] = {
            "layer": np.arange(model.layers),
            "head": np.arange(model.heads),
            "kv_group": ("head", np.arange(model.heads) // group),
            "token": (("prompt", "query"), token.astype(str)),
            "token_id": (("prompt", "query"), token_id),
            "length": ("prompt", np.array([len(one) for one in ids])),
            **{name: ("layer", values) for name, values in self.per_layer.items()},
            "causal": ("layer", self.per_layer["causal"] > 0),
        }
        if self.sinks:
            # NaN where a layer has none.
            logits = np.full((model.layers, model.heads), np.nan, dtype=np.float32)
            for layer, values in self.sinks.items():
                logits[layer] = values
            coords["sink_logit"] = (("layer", "head"), logits)
        used = {dim for dims in self.layout.values() for dim in dims}
        if "kv_head" in used:
            coords["kv_head"] = np.arange(model.kv_heads)
        coords.update({dim: np.array(labels) for dim, labels in self._labels().items()})
        return coords


def blocks(model: Model) -> list[nn.Module]:
    """Find the blocks of a model: the entries of its lists of modules that hold attention."""
    found: dict[int, nn.Module] = {}
    for group in model.module.modules():
        if not isinstance(group, nn.ModuleList):
            continue
        for block in group:
            held = [getattr(part, "layer_idx", None) for part in block.modules()]
            layers = {one for one in held if isinstance(one, int)}
            if len(layers) == 1:
                found.setdefault(layers.pop(), block)
    if sorted(found) != list(range(model.layers)):
        raise Refused(f"keep: the blocks of {model.name} are not found, so not its residual stream")
    return [found[layer] for layer in range(model.layers)]


def _attrs(name: str) -> dict[str, Any]:
    if name in KEPT:
        return {"long_name": KEPT[name][0], "units": "activation", "scale": "diverging"}
    one = statistics.load(name)
    attrs: dict[str, Any] = {
        "long_name": one.doc.strip().splitlines()[0].rstrip("."),
        "units": one.units,
        "scale": one.scale,
        "source": one.source,
    }
    for bound, value in (("low", one.low), ("high", one.high)):
        if value is not None:
            attrs[bound] = float(value)
    return attrs
