"""TransformerBridges of TransformerLens around models of transformers."""

import warnings
from typing import Any

import torch


def bridge_of(module: Any, tokenizer: Any) -> Any:
    """Boot a TransformerBridge around a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns about its own dependencies
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            "tiny", hf_model=module, tokenizer=tokenizer, dtype=torch.float32
        )
