"""The unembedding: what a vector in the residual stream says about the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# What architectures call the norm after the last block.
NORMS = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "embedding_norm",
    "layer_norm",
)  # fmt: skip


def read_out(model: Model, vectors: Float[Tensor, "*batch residual"]) -> Float[Tensor, "*batch _"]:
    """Send vectors alone through the final norm and the unembedding: logits.

    The norm is that of the vector alone, so only its direction counts.
    """
    module: Any = model.module
    unembedding = module.get_output_embeddings()
    if unembedding is None:
        raise NotApplicable(
            f"model: {model.name} has no unembedding, so no logits; give one with a head"
        )
    norm = final_norm(model)
    with torch.no_grad():
        return (
            torch.as_tensor(unembedding(norm(vectors.to(model.device, model.dtype)))).float().cpu()
        )


def final_norm(model: Model) -> nn.Module:
    """Find the norm after the last block."""
    base: Any = model.base
    for part in (base, getattr(base, "decoder", None)):
        for name in NORMS:
            norm = getattr(part, name, None)
            if isinstance(norm, nn.Module):
                return norm
    raise NotApplicable(
        f"model: the final norm of {model.name} is not found under the names {', '.join(NORMS)}"
    )
