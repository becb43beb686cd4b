"""Arrays of a capture, in memory or in a file, written batch by batch; NaN until written.

For long texts neighbouring queries or keys share a bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.capturing.options import CaptureOptions

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

KEPT_DIMS = {
    "q": ("layer", "head", "query", "size"),
    "k": ("layer", "kv_head", "key", "size"),
    "v": ("layer", "kv_head", "key", "size"),
    "z": ("layer", "head", "query", "size"),
    "resid": ("boundary", "query", "channel"),
}
BINNED = ("query", "key")
"""Dims whose entries may share a bin."""


class ArrayWriter:
    """The arrays of all statistics and activations: their dims and shapes, and what is in them.

    The first dims are prompt and layer or boundary. ``arrays`` is empty until `allocate`, or set to
    those of a file; ``longest`` counts the tokens of the longest prompt, queries or keys, and
    ``width`` those in a bin.
    """

    def __init__(
        self,
        model: Model,
        prompts: Prompts,
        options: CaptureOptions,
        names: Mapping[str, Sequence[str]],
    ) -> None:
        """Plan the arrays; ``names`` are those along the dims target and span."""
        check_bins(options.bins, options.stats, options.keep, crossed=prompts.crossed)
        self.model, self.prompts, self.options, self.names = model, prompts, options, names
        self.longest = max(prompts.longest)
        self.width = width_of(options.bins, self.longest)
        self._sizes: dict[tuple[int, int], dict[str, int]] = {}
        self.dims = {
            name: ("prompt", "layer", "head", *statistics.load(name).dims) for name in options.stats
        }
        for name in options.keep:
            dims = KEPT_DIMS[name]
            if name in ("v", "z") and model.geometry.value_size != model.head_size:
                dims = (*dims[:-1], "value_size")
            self.dims[name] = ("prompt", *dims)
        queries, keys = prompts.longest
        sizes = self.sizes(queries, keys) | {
            "query": -(-queries // self.width),
            "key": -(-keys // self.width),
            "prompt": len(prompts.ids),
            "layer": model.layers,
            "boundary": model.layers + 1,
            "head": model.heads,
            "kv_head": model.kv_heads,
        }
        self.shapes = {name: tuple(sizes[dim] for dim in dims) for name, dims in self.dims.items()}
        self.arrays: dict[str, npt.NDArray[np.float32]] = {}

    def allocate(self) -> None:
        """Allocate the arrays, NaN everywhere."""
        for name, shape in self.shapes.items():
            self.arrays[name] = np.full(shape, np.nan, dtype=np.float32)

    def stand_in(self) -> None:
        """Replace the arrays by NaN of the right shapes, which takes no memory."""
        for name, shape in self.shapes.items():
            self.arrays[name] = np.broadcast_to(np.float32(np.nan), shape)

    def labels(self, length: int) -> dict[str, Sequence[Any]]:
        """Label the dims that the statistics bring to a prompt of some length."""
        declared = [statistics.load(name).labels for name in self.options.stats]
        request = self.options.request
        labels = {dim: of(request, length) for dims in declared for dim, of in dims.items()}
        return {dim: self.names.get(dim, positions) for dim, positions in labels.items()}

    def sizes(self, queries: int, keys: int) -> dict[str, int]:
        """Count the elements along every dim of a prompt of so many queries and keys."""
        if (queries, keys) not in self._sizes:
            tile = self.options.request.tile
            self._sizes[queries, keys] = {
                "query": queries,
                "key": keys,
                "query_tile": -(-queries // tile),
                "key_tile": -(-keys // tile),
                "size": self.model.head_size,
                "value_size": self.model.geometry.value_size,
                "channel": self.model.module.config.get_text_config().hidden_size,
                **{dim: len(names) for dim, names in self.labels(max(queries, keys)).items()},
            }
        return self._sizes[queries, keys]

    def write(self, name: str, rows: Sequence[int], layer: int, values: Tensor) -> None:
        """Write one layer of some prompts, cut to the length of each, into bins where wanted."""
        batch = values.detach().to("cpu", torch.float32).numpy()
        dims = self.dims[name][2:]
        for row, array in zip(rows, batch, strict=True):
            # A batch is as long as its longest prompt.
            sizes = self.sizes(len(self.prompts.ids[row]), len(self.prompts.keys[row]))
            real = array[tuple(slice(0, sizes.get(dim)) for dim in dims)]
            if name in self.options.stats:
                real = collect(name, real, dims, self.width)
            self.arrays[name][row, layer][tuple(slice(0, size) for size in real.shape)] = real


def width_of(bins: int | None, longest: int) -> int:
    """Return how many tokens a bin holds; 1 where none are wanted or the text has no more tokens.

    >>> width_of(100, 1000), width_of(100, 1001), width_of(100, 50), width_of(None, 1000)
    (10, 11, 1, 1)
    """
    return 1 if bins is None else -(-longest // bins)


def check_bins(
    bins: int | None, stats: Sequence[str], keep: Sequence[str], *, crossed: bool = False
) -> None:
    """Refuse what has no meaning in bins."""
    if bins is None:
        return
    if bins < 1:
        raise InvalidInput(f"bins: {bins}; give 1 or more, or None for every token")
    if crossed:
        raise NotApplicable("bins: keys are tokens of another text in cross-attention; bins=None")
    if keep:
        raise InvalidInput(
            f"bins: {', '.join(keep)} keep every token; leave them out, or bins=None"
        )
    for name in stats:
        statistic = statistics.load(name)
        if statistic.merge == "top" or set(BINNED) <= set(statistic.dims):
            raise NotApplicable(f"bins: {name} has a meaning for single tokens only; leave it out")


def collect(
    name: str, values: npt.NDArray[Any], dims: Sequence[str], width: int
) -> npt.NDArray[Any]:
    """Reduce queries and keys of one prompt to bins of ``width`` tokens.

    The mean of the tokens that have a number; the largest for a statistic that is a largest over
    queries. NaN where no token of a bin has one.

    >>> collect("entropy", np.array([1.0, 3.0, np.nan, 4.0, 6.0]), ("query",), 2).tolist()
    [2.0, 4.0, 6.0]
    """
    largest = statistics.load(name).merge == "largest"
    for axis, dim in enumerate(dims):
        if dim not in BINNED or width == 1:
            continue
        starts = np.arange(0, values.shape[axis], width)
        if largest:
            values = np.fmax.reduceat(values, starts, axis=axis)
            continue
        real = ~np.isnan(values)
        counts = np.add.reduceat(real, starts, axis=axis, dtype=np.int64)
        total = np.add.reduceat(np.where(real, values, 0.0), starts, axis=axis, dtype=np.float64)
        values = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return values
