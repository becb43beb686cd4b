"""The compiled sweep: softmax of a panel with the reductions asked for, in one pass.

The same numbers as the panel's own formulas on torch, to rounding. Where there is no C compiler,
panels do without it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.compiled.operands import Operands
from headscope.kernels.compiled.sweep_call import COLUMNS, QUERY, ROWS, Call, Run, at
from headscope.kernels.panels.logits import EXACT_ROWS, SHARP, Buffers, PanelResult
from headscope.kernels.panels.reductions import distance_bins
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.ranges import length, split_range
from headscope.kernels.request import Request
from headscope.kernels.visibility import Block, Visibility

LARGEST_K = 64
"""Most leaders of a row; the sweep orders them in a buffer of twice as many."""

ADDED = ("key_sum", "key_max")
"""Reductions that the rows of several tiles go into."""

ENDLESS = 1 << 62

ALWAYS = frozenset({"max_logit", "max_prob", "lse_minus_max"})
REDUCTIONS = frozenset(
    {*ROWS, *COLUMNS, "distance_hist", "topk_index", "topk_weights", "attn_output"} - {"max_logit"}
)
"""Properties of a panel that a sweep can compute."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """The sweep with what stays the same in all panels of some sequences and heads.

    ``valid_queries`` are the rows with a result, None when all have one. ``sinks`` are contiguous.
    ``reductions`` names reductions to fill in, of ``REDUCTIONS``, and ``weights``; what is left to
    torch, such as more than 64 leaders, is made from the weights. ``operands`` are what to
    multiply, None where the logits are there. ``scratch`` is memory for a few rows, and for what
    they are reduced to. The averaged values of all queries go into ``output``; None: the scratch.
    """

    run: Run
    request: Request
    visibility: Visibility
    valid_queries: Tensor | None
    sinks: Tensor | None
    reductions: frozenset[str]
    operands: Operands | None = None
    scratch: Scratch = field(default_factory=Scratch)
    output: Float[Tensor, "batch head all value_size"] | None = None

    @cached_property
    def filled(self) -> frozenset[str]:
        """Reductions that the sweep fills in."""
        filled = (ALWAYS | self.reductions) - left_to_torch(self.request, self.visibility)
        if "topk_weights" in filled:
            filled |= {"topk_index"}
        if self.operands is None or not self.operands.mixes:
            filled -= {"attn_output"}
        return filled

    def fill(self, block: Block, buffers: Buffers) -> PanelResult:
        """Convert the logits of a block into weights."""
        assert self.operands is not None
        logits, shape = self.operands.logits, torch.Size(buffers.shape)
        # Whatever the sweep does not fill in is made from the weights.
        weights = buffers.none() if self.reductions <= self.filled else buffers.panel
        filled = self.allocate(block, shape)
        prepared = None
        if not self.operands.scores:
            prepared = logits.put(block, buffers.panel, hide=False)
        sharp = not self.reduce(block, filled, SHARP, prepared, weights)
        if sharp:
            for rows in self.pieces(block):
                # Sharp rows come together: once they do, the others are made exactly as well.
                if prepared is None:
                    before = {name: filled[name].clone() for name in ADDED if name in filled}
                    if self.reduce(block, filled, SHARP, None, weights, rows):
                        continue
                    for name, values in before.items():
                        filled[name].copy_(values)
                prepared = logits.exact(block, rows, self.scratch, hide=False)
                self.reduce(block, filled, float("inf"), prepared, weights, rows)

        def compute_logits() -> Tensor:
            # The sweep keeps none; few statistics read logits.
            if not sharp:
                return logits.put(block, buffers.spare)
            for rows in self.pieces(block):
                logits.exact(block, rows, self.scratch, out=buffers.spare[:, :, rows])
            return buffers.spare

        computed = dict(filled)
        return PanelResult(weights, computed.pop("max_logit"), compute_logits, computed)

    def pieces(self, block: Block) -> Iterator[slice]:
        """Split the rows of a block into whole tiles, few enough for logits of float64."""
        tile = self.request.tile
        return split_range(0, length(block.queries), max(EXACT_ROWS // tile * tile, tile))

    def reduce(
        self,
        block: Block,
        filled: Mapping[str, Tensor],
        limit: float,
        logits: Float[Tensor, "batch head row key"] | None,
        weights: Float[Tensor, "batch head query key"],
        rows: slice | None = None,
    ) -> bool:
        """Convert the logits of a panel, or those that the sweep makes itself (None), into weights.

        ``filled`` receives the properties of the panel, ``weights`` the weights (a tensor without
        data keeps none). ``rows`` are whole tiles that ``logits`` belong to; None is all rows.
        Returns whether no logit was farther from 0 than ``limit``; else the weights are spoilt.
        """
        visibility, queries, keys = self.visibility, block.queries, block.keys
        low, high = block.low.contiguous(), block.high.contiguous()
        real, valid_queries = (
            None if mask is None else mask[:, positions].contiguous()
            for mask, positions in ((visibility.key_mask, keys), (self.valid_queries, queries))
        )
        first = None
        if visibility.key_mask is not None and "first_sum" in filled:
            first = visibility.first_keys(self.request.first).contiguous()
        fields = {} if self.operands is None else self.operands.fields
        query = None
        if logits is None:
            assert self.operands is not None
            query = self.operands.query(block)
            strides = dict(zip(QUERY, query.stride(), strict=False))
            fields = fields | {"query": query.data_ptr()} | strides
        elif "key_amx" in fields:
            # The scale belongs to products.
            fields = fields | {"key_amx": None}
        if "attn_output" in filled:
            batch, head = filled["attn_output"].stride()[:2]
            fields = fields | {"attn_output_batch": batch, "attn_output_head": head}
        call = Call(
            *weights.shape,
            0 if rows is None else rows.start,
            weights.shape[2] if rows is None else rows.stop,
            None if logits is None else logits.data_ptr(),
            None if weights.is_meta else weights.data_ptr(),
            low.data_ptr(),
            high.data_ptr(),
            keys.start,
            *at(real),
            *at(valid_queries),
            None if self.sinks is None else self.sinks.data_ptr(),
            queries.start + visibility.shift - keys.start,
            self.request.tile,
            len(self.ends),
            self.ends.data_ptr(),
            self.request.k,
            max(self.request.first - keys.start, 0) if first is None else self.request.first,
            None if first is None else first.data_ptr(),
            limit,
            float("inf") if self.request.clip is None else self.request.clip,
            **{name: tensor.data_ptr() for name, tensor in filled.items()},
            **fields,
        )
        return not self.run(call, self.scratch)

    @cached_property
    def ends(self) -> Int[Tensor, " bin"]:
        """One past the largest distance of each bin."""
        starts = distance_bins(max(self.visibility.queries, self.visibility.keys))
        return torch.tensor([*starts[1:], ENDLESS])

    def allocate(self, block: Block, shape: torch.Size) -> dict[str, Tensor]:
        """Allocate the reductions of a panel."""
        *heads, rows, keys = shape
        tiles, across = -(-rows // self.request.tile), -(-keys // self.request.tile)
        extents: dict[str, tuple[int, ...]] = {
            "distance_hist": (rows, len(self.ends)),
            "topk_index": (rows, self.request.k),
            "topk_weights": (rows, self.request.k),
            "key_sum": (keys,),
            "key_max": (keys,),
            "tile_sum": (tiles, across),
            "tile_max": (tiles, across),
        }
        if "attn_output" in self.filled:
            assert self.operands is not None
            extents["attn_output"] = (rows, self.operands.fields["value_size"])
        shapes = {name: (*heads, *extents.get(name, (rows,))) for name in self.filled}
        if self.output is not None:
            shapes.pop("attn_output", None)
        if "topk_index" in shapes:
            shapes["topk_index"] = (*shapes["topk_index"], 2)
        results = self.scratch.share("results", shapes)
        if "attn_output" in self.filled and self.output is not None:
            results["attn_output"] = self.output[:, :, block.queries]
        if "topk_index" in results:
            # Two halves of a whole number.
            results["topk_index"] = results["topk_index"].view(torch.int64).squeeze(-1)
        return results


def left_to_torch(request: Request, visibility: Visibility) -> frozenset[str]:
    """List what the sweep leaves to torch, which needs the weights for it."""
    remaining = {"weights", "logits"}
    if request.k > LARGEST_K:
        remaining |= {"topk_index", "topk_weights"}
    if visibility.lengths is not None:
        remaining |= {"first_sum"}
    return frozenset(remaining)
