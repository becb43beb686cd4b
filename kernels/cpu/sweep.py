"""The compiled sweep: softmax of a panel in place, with the reductions asked for, in one pass.

The same numbers as the panel's own formulas on torch, to rounding. Where there is no C compiler,
panels do without it.
"""

import ctypes
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.cpu import blas, compiler
from headscope.kernels.cpu.logits import SHARP, Buffers, Filled, Logits
from headscope.kernels.cpu.panel import distance_bins
from headscope.kernels.cpu.sweep_call import Call, Run, at, multiply
from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.kernels.variant import Variant
from headscope.kernels.visibility import Block, Visibility

Engine = Literal["auto", "panels", "compiled"]
ENGINES: tuple[Engine, ...] = ("auto", "panels", "compiled")

SOURCE = Path(__file__).with_name("sweep.c")
LARGEST_K = 64
"""Most leaders of a row; the sweep orders them in a buffer of twice as many."""

ENDLESS = 1 << 62

ALWAYS = frozenset({"peak", "top", "surplus"})
REDUCTIONS = frozenset(
    {
        "entropy",
        "mean_distance",
        "distance_variance",
        "distance_hist",
        "leaders",
        "mixed",
        "sums",
        "peaks",
        "tile_sums",
        "tile_peaks",
    }
)
"""Properties of a panel that a sweep fills in when they are asked for."""


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Parameters
    ----------
    run
        The sweep; None when there is none.
    note
        One line: where the library comes from, or why there is none.
    """

    run: Run | None
    note: str


@cache
def library() -> Library:
    """Build and load the sweep, once in a process.

    Returns
    -------
    The library, or the reason why there is none.

    Examples
    --------
    >>> library().note != ""
    True
    """
    built = compiler.build(SOURCE)
    if built.path is None:
        return Library(None, built.note)
    try:
        loaded = ctypes.CDLL(str(built.path)).sweep
    except (OSError, AttributeError) as error:
        return Library(None, f"{built.note}, but it does not load: {error}")
    loaded.argtypes = (ctypes.POINTER(Call),)
    loaded.restype = ctypes.c_int

    def run(call: Call) -> int:
        # ctypes lets other Python threads run meanwhile.
        return int(loaded(ctypes.byref(call)))

    if not agrees(run):
        return Library(None, f"{built.note}, but it computes other numbers than torch")
    return Library(run, built.note)


def agrees(run: Run) -> bool:
    """Compare a small panel with torch: a library is used only if it gives the same."""
    logits = torch.linspace(-9.0, 9.0, 3 * 77).sin().mul(5.0).view(1, 1, 3, 77)
    visibility = Visibility(3, 77, causal=True, window=70)
    block = visibility.block(slice(0, 3), 1)
    logits = logits[..., block.keys]
    panel = logits.clone()
    sweep = Sweep(run, Request(stats=(), k=2), visibility, None, None, frozenset({"leaders"}))
    found = sweep.reduce(panel, block, float("inf"))
    visibility.hide(logits, block)
    weights = logits.softmax(dim=-1)
    return (
        found is not None
        and torch.allclose(panel, weights, rtol=1e-6, atol=1e-9)
        and torch.allclose(found["top"], weights.amax(dim=-1), rtol=1e-6)
        and torch.equal(found["leaders"], logits.topk(2, dim=-1).indices)
    )


def choose(
    engine: Engine, variant: Variant, precision: torch.dtype, device: torch.device
) -> Run | None:
    """Decide between the sweep and torch.

    Returns
    -------
    The sweep, or None for torch.

    Raises
    ------
    Refused
        When the sweep is demanded and cannot be had.
    """
    if engine not in ENGINES:
        raise Refused(f"engine: {engine!r}; choose from {', '.join(ENGINES)}")
    reason = None
    if engine == "panels":
        return None
    if variant.sigmoid:
        reason = "it has no sigmoid attention"
    elif precision != torch.float32:
        reason = "it computes in float32"
    elif device.type != "cpu":
        reason = f"it runs on the processor, not on {device}"
    elif library().run is None:
        reason = library().note
    if reason is None:
        return library().run
    if engine == "compiled":
        raise Refused(f"engine: no compiled sweep: {reason}; or use engine='auto'")
    return None


@dataclass(frozen=True, eq=False)
class Sweep:
    """The sweep with what stays the same in all panels of some sequences and heads.

    Parameters
    ----------
    run
        The loaded library.
    request
        Parameters of the reductions.
    visibility
        Which keys each query may see.
    alive
        Which rows have a result; None when all have.
    sinks
        Logits of the heads' learned sinks, contiguous, if any.
    wanted
        Which reductions to fill in, of ``REDUCTIONS``; more than 64 leaders are left to torch.
    values
        Values of all keys, one for each KV head, contiguous; for ``mixed``.
    """

    run: Run
    request: Request
    visibility: Visibility
    alive: Tensor | None
    sinks: Tensor | None
    wanted: frozenset[str]
    values: Float[Tensor, "batch_kv_head token value_size"] | None = None

    def fill(self, logits: Logits, block: Block, buffers: Buffers) -> Filled:
        """Turn the logits of a block into weights.

        Parameters
        ----------
        logits
            Where the logits come from.
        block
            Which queries and keys.
        buffers
            Memory; only ``panel`` is used, unless the logits are too sharp for float32.
        """
        panel, spare = buffers.panel, buffers.spare
        if logits.scores.plain and blas.gemm() is not None:
            known = self.reduce(panel, block, SHARP, logits)
        else:
            logits.put(block, panel, hide=False)
            known = self.reduce(panel, block, SHARP)
        sharp = known is None
        if known is None:
            logits.put(block, buffers.exact, hide=False)
            panel.copy_(buffers.exact)
            known = self.reduce(panel, block, float("inf"))
            assert known is not None

        def score() -> Tensor:
            # The weights took the logits' place; few statistics look at logits again.
            exact = torch.empty(panel.shape, dtype=torch.float64) if sharp else spare
            logits.put(block, exact)
            if sharp:
                spare.copy_(exact)
            return spare

        return Filled(panel, known.pop("peak"), score, known)

    def reduce(
        self,
        panel: Float[Tensor, "batch head query key"],
        block: Block,
        limit: float,
        logits: Logits | None = None,
    ) -> dict[str, Tensor] | None:
        """Turn the logits of a panel into weights, in place.

        Parameters
        ----------
        panel
            Logits; those of keys hidden by order, window or padding may be anything.
        block
            Which queries and keys these are.
        limit
            Give up at a row whose largest logit is farther from 0 than this.
        logits
            Where to take the logits from, products and nothing else; None: they are there.

        Returns
        -------
        Properties of the panel by name; None when it gave up, with the panel spoilt.
        """
        visibility, queries, keys = self.visibility, block.queries, block.keys
        low, high = (edge[queries].contiguous() for edge in (visibility.low, visibility.high))
        real = visibility.key_mask
        real = None if real is None else real[:, keys].contiguous()
        alive = None if self.alive is None else self.alive[:, queries].contiguous()
        filled = self.room(panel)
        products = multiply(panel, block, logits, self.values if "mixed" in filled else None)
        call = Call(
            *panel.shape,
            panel.data_ptr(),
            low.data_ptr(),
            high.data_ptr(),
            keys.start,
            *at(real),
            *at(alive),
            None if self.sinks is None else self.sinks.data_ptr(),
            queries.start + visibility.shift - keys.start,
            self.request.tile,
            len(self.ends),
            self.ends.data_ptr(),
            self.request.k,
            limit,
            float("inf") if self.request.clip is None else self.request.clip,
            **{name: tensor.data_ptr() for name, tensor in filled.items()},
            **products.places,
        )
        status = self.run(call)
        if status > 1:
            raise MemoryError("no memory for one row of attention logits")
        return None if status else filled

    @cached_property
    def ends(self) -> Int[Tensor, " bin"]:
        """One past the largest distance of each bin."""
        starts = distance_bins(max(self.visibility.queries, self.visibility.keys))
        return torch.tensor([*starts[1:], ENDLESS])

    def room(self, panel: Float[Tensor, "batch head query key"]) -> dict[str, Tensor]:
        """Make room for what is wanted of a panel."""
        *heads, rows, keys = panel.shape
        tiles, across = -(-rows // self.request.tile), -(-keys // self.request.tile)
        extents: dict[str, tuple[int, ...]] = {
            "distance_hist": (rows, len(self.ends)),
            "leaders": (rows, self.request.k),
            "sums": (keys,),
            "peaks": (keys,),
            "tile_sums": (tiles, across),
            "tile_peaks": (tiles, across),
        }
        wanted = ALWAYS | self.wanted
        if self.request.k > LARGEST_K:
            wanted = wanted - {"leaders"}
        if self.values is None or blas.gemm() is None:
            wanted = wanted - {"mixed"}
        else:
            extents["mixed"] = (rows, self.values.shape[-1])
        return {
            name: panel.new_empty(
                *heads,
                *extents.get(name, (rows,)),
                dtype=torch.long if name == "leaders" else torch.float32,
            )
            for name in wanted
        }
