"""Take a Hugging Face model out of what others wrap around it."""

from typing import Any

from torch import nn
from transformers import Pipeline, PreTrainedModel

from headscope.kernels.errors import InvalidInput


def unwrap(source: Any, tokenizer: Any = None) -> tuple[PreTrainedModel, Any]:
    """Return the Hugging Face model inside a wrapper, and a tokenizer.

    Wrappers are a transformers pipeline (whose tokenizer is used where none is given),
    ``torch.compile``, ``DataParallel`` and its distributed form, and a PEFT model whose adapter
    lies inside the layers, such as LoRA: it then stays in force.
    """
    if isinstance(source, PreTrainedModel):
        return source, tokenizer
    if isinstance(source, Pipeline):
        return unwrap(source.model, source.tokenizer if tokenizer is None else tokenizer)
    if isinstance(source, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap(source.module, tokenizer)
    if "_orig_mod" in getattr(source, "_modules", ()):
        return unwrap(source._orig_mod, tokenizer)
    if any(kind.__module__.startswith("peft.") for kind in type(source).__mro__):
        if source.active_peft_config.is_prompt_learning:
            raise InvalidInput(
                f"model: {source.active_peft_config.peft_type} puts vectors before the prompt, "
                "which are no tokens; only adapters inside the layers can be captured"
            )
        return unwrap(source.get_base_model(), tokenizer)
    raise InvalidInput(
        f"model: {type(source).__name__} is none of a name, a folder, a Hugging Face model or a "
        "TransformerBridge; give the Hugging Face model inside it"
    )
