"""Keys and values of a part, packed once for all matrix products of the compiled sweep."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.compiled import blas
from headscope.kernels.panels.logits import Logits
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.visibility import Block

Pack = Callable[[Tensor, int, bool, int], None]
"""Packs matrices (kv head, term, column) for the matrix unit: parts, order, address."""

PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""How many bfloat16 numbers make one of each type."""
LEAST_ROWS = 32
"""Queries of a call from which packing the keys pays: an AMX tile holds 16."""
TERMS, EDGE = 32, 16
"""Terms of an AMX tile, and its rows or columns."""
AMX_TILE = TERMS * EDGE


@dataclass(frozen=True, eq=False)
class Operands:
    """Keys and values as the sweep takes them, and the logits that they give.

    ``fields`` are those of a ``Call``, ``tensors`` those that they point to.
    """

    logits: Logits
    fields: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def scores(self) -> bool:
        """Whether the sweep makes the logits: products and nothing else."""
        return "key_head" in self.fields

    @property
    def mixes(self) -> bool:
        """Whether the sweep averages the values."""
        return "value_head" in self.fields

    @classmethod
    def of(
        cls,
        logits: Logits,
        values: Float[Tensor, "batch_kv_head token value_size"] | None,
        pack: Pack | None,
        scratch: Scratch,
    ) -> "Operands":
        """Prepare keys, where logits are plain products, and values, if any are averaged.

        Without ``pack``, for the matrix unit, products are left to BLAS where it can be called.
        What is packed stays in the scratch until the next part.
        """
        fields: dict[str, Any] = {"gemm": blas.gemm(), "group": logits.q.shape[2]}
        tensors = []
        parts = PARTS[logits.q.dtype]
        if logits.q.shape[3] < LEAST_ROWS:
            pack = None
        if fields["gemm"] is None and pack is None:
            return cls(logits, {}, ())

        def put(name: str, matrices: Tensor, by_column: bool) -> None:
            if pack is None:
                # Products are a tenth faster with keys side by side.
                matrices = matrices.contiguous()
                tensors.append(matrices)
                fields[name] = matrices.data_ptr()
                fields[f"{name}_head"] = matrices.stride(0)
                return
            halves = packed_size(matrices.shape[1], matrices.shape[2], parts)
            address = scratch.take(name, 2 * len(matrices) * halves).data_ptr()
            pack(matrices, parts, by_column, address)
            fields.update({f"{name}_amx": address, f"{name}_parts": parts})
            fields[f"{name}_head"] = halves

        if logits.scores.plain:
            put("key", logits.k, True)
            size, length = logits.k.shape[1:]
            fields.update(size=size, stride=length, scale=logits.scale)
        if values is not None:
            put("value", values, False)
            fields["value_size"] = values.shape[2]
        return cls(logits, fields, tuple(tensors))

    def query(self, block: Block) -> Float[Tensor, "batch head row size"]:
        """Queries of a block in float32, to be held until the sweep has returned."""
        rows = self.logits.q[..., block.queries, :].float().flatten(1, 2)
        return rows if rows.stride(-1) == 1 else rows.contiguous()


def packed_size(terms: int, columns: int, parts: int) -> int:
    """Count the bfloat16 numbers of one packed matrix."""
    return -(-terms // TERMS) * -(-columns // (2 * EDGE)) * 2 * parts * AMX_TILE


def packer(library: ctypes.CDLL) -> Pack | None:
    """Return the packing function of the library; None without a usable matrix unit."""
    if not library.amx_available():
        return None
    function = library.pack_tiles
    function.argtypes = (ctypes.c_void_p, *[ctypes.c_int64] * 7, ctypes.c_void_p)
    function.restype = None

    def pack(matrices: Tensor, parts: int, by_column: bool, address: int) -> None:
        terms, columns = matrices.shape[1:]
        step, edge = (1, -(-terms // TERMS)) if by_column else (-(-columns // (2 * EDGE)) * 2, 1)
        for matrix in matrices:
            shape = (terms, columns, *matrix.stride())
            function(matrix.data_ptr(), *shape, parts, step, edge, address)
            address += 2 * packed_size(terms, columns, parts)

    return pack
