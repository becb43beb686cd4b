"""A model whose products with weights are in bfloat16, for sweeps of many passes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


class _Product(nn.Module):
    """A linear layer whose product is in bfloat16; what goes in and comes out is as it was."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().to(torch.bfloat16))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def forward(self, values: Tensor) -> Tensor:
        low = values.to(torch.bfloat16)
        return nn.functional.linear(low, self.weight, self.bias).to(values.dtype)  # type: ignore[arg-type]


def in_bfloat16(model: Model) -> Model:
    """Return the model with the products of its linear layers in bfloat16.

    Attention, norms, the residual stream and the unembedding stay in float32, and their weights
    are shared, not copied, so that an effect is lost in rounding as little as speed allows.

    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> low = in_bfloat16(model)
    >>> low.dtype is model.dtype, low.module.lm_head.weight is model.module.lm_head.weight
    (True, True)
    """
    from transformers.pytorch_utils import Conv1D

    if model.dtype is not torch.float32:
        raise NotApplicable(
            f"dtype: {model.name} is in {str(model.dtype).removeprefix('torch.')}, not in float32; "
            "leave dtype out"
        )
    if model.bridge is not None or len(set(getattr(model.module, "hf_device_map", ()))) > 1:
        raise NotApplicable(
            f"dtype: {model.name} is a TransformerBridge, or spread over devices; leave dtype out, "
            "or load it as a Hugging Face model on one device"
        )
    shared = (*model.module.parameters(), *model.module.buffers())
    module: Any = deepcopy(model.module, {id(tensor): tensor for tensor in shared})
    unembedding = module.get_output_embeddings()
    replaced = 0
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) not in (nn.Linear, Conv1D) or child is unembedding:
                continue
            weight = child.weight if type(child) is nn.Linear else child.weight.T.contiguous()
            setattr(part, name, _Product(weight, child.bias))
            replaced += 1
    if not replaced:
        raise NotApplicable(
            f"dtype: {model.architecture} has no linear layers of PyTorch; leave dtype out"
        )
    return replace(model, module=module)
