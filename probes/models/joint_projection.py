"""Answer a joint projection of queries, keys and values with a TransformerBridge's separate ones.

Where a model has one matrix for all three (GPT-2, GPT-NeoX), a bridge splits it and computes with
the parts, which are weights of its own: `enable_compatibility_mode` processes these, not the
matrix. How the matrix lays out its outputs is read off the bridge's own way to split it.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_known: WeakKeyDictionary[nn.Module, Tensor | None] = WeakKeyDictionary()


class JointProjection(nn.Module):
    """The separate projections of a bridge, with their outputs where the joint one has them.

    Attributes
    ----------
    q, k, v
        The bridge's projections, with its hooks.
    """

    def __init__(self, part: Any, order: Int[Tensor, " output"]) -> None:
        super().__init__()
        self.q, self.k, self.v = part.q, part.k, part.v
        self._order = order
        self._transposed = _transposed(joint_of(part))

    def forward(self, entered: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Project to queries, keys and values."""
        return self._ordered([self.q(entered), self.k(entered), self.v(entered)])

    @torch.no_grad()
    def assembled(self) -> nn.Module:
        """Return the weights as a joint projection holds them."""
        parts: list[Any] = [part.original_component for part in (self.q, self.k, self.v)]
        weight = self._ordered([part.weight.T for part in parts])
        joint = nn.Module()
        joint.weight = nn.Parameter(weight if self._transposed else weight.T)
        if any(part.bias is not None for part in parts):
            biases = [
                part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias
                for part in parts
            ]
            joint.bias = nn.Parameter(self._ordered(biases))
        return joint

    def _ordered(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts, dim=-1)
        return joined.index_select(-1, self._order.to(joined.device))


def joint_of(part: Any) -> Any:
    """Return the joint projection that a bridge's attention has split, or None."""
    if not hasattr(part, "split_qkv_matrix") or "qkv" not in part.submodules:
        return None
    return part.submodules["qkv"].original_component


def answered(part: Any) -> JointProjection | None:
    """Return what answers for the joint projection of a bridge's attention, if it has one.

    None also where the split is not known to move whole outputs about; then the model's own joint
    projection runs, and a bridge with other weights is refused at load.
    """
    joint = joint_of(part)
    if joint is None or getattr(joint, "weight", None) is None:
        return None
    if part not in _known:
        _known[part] = _order(part, joint)
    order = _known[part]
    return None if order is None else JointProjection(part, order)


def _order(part: Any, joint: Any) -> Int[Tensor, " output"] | None:
    """Say where every output of the joint projection is among queries | keys | values.

    The bridge splits a matrix each of whose outputs is its own number.
    """
    transposed = _transposed(joint)
    width = joint.weight.shape[1 if transposed else 0]
    numbers = torch.arange(width, dtype=torch.float32)
    rows = numbers if transposed else numbers[:, None]
    before = dict(joint._parameters)
    joint._parameters["weight"] = nn.Parameter(rows.expand(joint.weight.shape))
    if before.get("bias") is not None:
        joint._parameters["bias"] = nn.Parameter(numbers)
    try:
        # Layers that it makes draw no random numbers there, and take no memory.
        with torch.device("meta"):
            split = part.split_qkv_matrix(part.original_component)
        places = torch.cat([linear.weight.detach()[:, 0] for linear in split]).long()
    except RuntimeError:
        return None
    finally:
        joint._parameters.update(before)
    held = [one.original_component.weight.shape for one in (part.q, part.k, part.v)]
    if held != [linear.weight.shape for linear in split]:
        return None
    order = places.argsort()
    return order if torch.equal(places[order], torch.arange(width)) else None


def _transposed(joint: Any) -> bool:
    return type(joint).__name__ == "Conv1D"
