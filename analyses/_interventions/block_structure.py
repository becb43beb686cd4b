"""Where the parts of a model's blocks are, and whether it can be taken apart."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope.analyses._measurements import residual_writes
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.attention import projections

if TYPE_CHECKING:
    from torch import nn

    from headscope.probes.models.model import Model


@dataclass(frozen=True)
class Structure:
    """What does not change while weights do.

    Attributes
    ----------
    writes
        How each layer's heads enter the residual stream: by a factor, or through a norm.
    parallel
        Whether the MLP of a block reads what its heads read.
    projections
        Of every layer and part (q, k, v and o).
    """

    writes: dict[int, residual_writes.Write]
    parallel: bool
    projections: dict[tuple[int, str], projections.Projection]

    @property
    def normed(self) -> frozenset[int]:
        """Layers with a norm between their heads and the stream."""
        return frozenset(at for at, write in self.writes.items() if write.module is not None)


_known: weakref.WeakKeyDictionary[nn.Module, Structure] = weakref.WeakKeyDictionary()


def read(model: Model) -> Structure:
    """Return the structure of a model, measured once; refuse one that cannot be taken apart."""
    _refuse(model)
    if model.module not in _known:
        _known[model.module] = Structure(
            residual_writes.head_writes(model),
            residual_writes.parallel(model),
            projections.read(model).projections,
        )
    return _known[model.module]


def _refuse(model: Model) -> None:
    model.check_predicts()
    points = {} if model.bridge is None else model.bridge.hook_dict
    hooked = [name for name, point in points.items() if point.fwd_hooks or point.bwd_hooks]
    if hooked:
        raise InvalidInput(
            f"{hooked[0]}: a hook of the TransformerBridge sees the parts of the blocks run over "
            "and over while edges are patched; remove it (bridge.reset_hooks())"
        )
    if model.attention != "self":
        raise NotApplicable(
            f"model: edges are those of a decoder alone, and {model.name} has an encoder"
        )
    if model.geometry.without:
        raise NotApplicable(
            f"model: layers {', '.join(map(str, model.geometry.without))} of {model.name} have no "
            "heads, so the edges through them are not known; use patching"
        )
