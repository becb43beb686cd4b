"""TransformerBridges of TransformerLens around models of transformers."""

import warnings
from typing import Any

import torch
from torch import Tensor

from headscope.probes import load_model
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate


def bridge_of(module: Any, tokenizer: Any) -> Any:
    """Boot a TransformerBridge around a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns about its own dependencies
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(
            "tiny", hf_model=module, tokenizer=tokenizer, dtype=torch.float32
        )


def bridge_if_known(module: Any, tokenizer: Any) -> Any:
    """Boot a TransformerBridge, or return None where TransformerLens does not know the model."""
    try:
        return bridge_of(module, tokenizer)
    except ValueError as error:
        if "Could not determine supported architecture" not in str(error):
            raise
        return None


def check_hook_z(bridge: Any, prompt: Tensor) -> None:
    """Fail unless zeros of L1H2 in hook_z give the logits of our ablation, with us and without."""
    model = load_model(bridge)

    def ablate(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        heads = z if z.ndim == 4 else z.unflatten(-1, (-1, model.geometry.value_size))
        heads[:, :, 2] = 0
        return z

    with torch.no_grad():
        intact = logits(model, prompt)
        expected = logits(model, prompt, (Ablate(heads=((1, 2),)),))
        with bridge.hooks([("blocks.1.attn.hook_z", ablate)]):
            hooked, own = logits(model, prompt), bridge(prompt)
    assert not torch.allclose(intact, expected, atol=1e-4)
    torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
