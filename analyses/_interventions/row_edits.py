"""Edits that differ from row to row of a batch, and the next-token loss of every row under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from headscope.kernels.api import WeightEdits
from headscope.kernels.errors import InvalidInput, NotApplicable, ResourceLimit
from headscope.probes.attention.forward import logits
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry, Model

# Tokens in one forward pass, and numbers in its logits.
TOKENS, NUMBERS = 8192, 2**26


@dataclass(frozen=True)
class RowScale(Edit):
    """Multiply weights by a factor for every row of the batch, head and key; rows sum to 1 again.

    What `ScaleKeys` does, chosen anew in every row.
    """

    factors: Float[Tensor, "batch layer head key"]

    def inside(self, layer: int, shape: tuple[int, int, int, int]) -> WeightEdits | None:
        """Add the logarithms of the factors to the logits of one layer."""
        factors = self.factors[:, layer]
        return None if bool((factors == 1).all()) else WeightEdits(key_bias=factors.log())

    def check(self, shape: Geometry) -> None:
        """Refuse factors of another shape."""
        if tuple(self.factors.shape[1:3]) != (shape.layers, shape.heads):
            raise InvalidInput(
                f"factors: shape {tuple(self.factors.shape)}; "
                f"the model has {shape.layers} layers × {shape.heads} heads"
            )

    def describe(self) -> dict[str, object]:
        """Name the edit."""
        return {"edit": "RowScale", "rows": len(self.factors)}


def losses(
    model: Model, ids: Int[Tensor, "batch position"], edits: Sequence[Any] = ()
) -> Float[Tensor, " batch"]:
    """Return the mean −log p of the next token of every row, in nats a token.

    Raises
    ------
    HeadscopeError
        When the logits of one row would not fit into memory, or a row has no next token.
    """
    if ids.shape[1] < 2:
        raise NotApplicable("prompts: one of a single token has no next token; give longer ones")
    if ids.shape[1] * model.vocabulary > 2**31:
        raise ResourceLimit(
            f"prompts: {ids.shape[1]} tokens times {model.vocabulary} words are too many logits "
            f"for the loss; give at most {2**31 // model.vocabulary} tokens a prompt"
        )
    with torch.no_grad():
        found = logits(model, ids, edits)
    wanted = ids[:, 1:].to(found.device)
    each = torch.nn.functional.cross_entropy(
        found[:, :-1].float().transpose(1, 2), wanted, reduction="none"
    )
    return each.mean(dim=1)


def swept(
    model: Model,
    ids: Int[Tensor, " position"],
    factors: Sequence[Callable[[], Float[Tensor, "layer head key"]]],
    step: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Return the loss of one prompt under every set of factors (set,), many in one pass."""
    together = max(1, min(TOKENS, NUMBERS // model.vocabulary) // len(ids))
    found = np.empty(len(factors))
    for start in range(0, len(factors), together):
        some = factors[start : start + together]
        edit = RowScale(torch.stack([make() for make in some]))
        values = losses(model, ids.expand(len(some), -1), (edit,))
        found[start : start + len(some)] = values.double().cpu().numpy()
        if step is not None:
            step(len(some))
    return found
