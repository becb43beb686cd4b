"""Every architecture that users ask for, tiny and with random weights."""

from typing import Any

import torch
from torch import Tensor

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
SMALL_HEADS = {**SHAPE, "head_dim": 8}
WIDE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
ENDS = {"bos_token_id": 0, "eos_token_id": 0}

# Stacks of different depth, so that they cannot be taken for each other.
T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "vocab_size": 64, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 64,
    "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    "forced_eos_token_id": None, "decoder_start_token_id": 2,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {**WIDE, **ENDS},
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "window_size": 8,
        "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1]], **ENDS,
    },
    "gpt_neox": {name: value for name, value in SHAPE.items() if "key_value" not in name},
    "gptj": {**WIDE, "rotary_dim": 4, **ENDS},
    "opt": {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
        "pad_token_id": 1,
    },
    "phi": SHAPE,
    "phi3": SHAPE,
    "llama": SHAPE,
    "mistral": {**SHAPE, "sliding_window": 8},
    "mixtral": {**SHAPE, **EXPERTS},
    "qwen2": SHAPE,
    "qwen3": SMALL_HEADS,
    "qwen3_moe": {
        **SMALL_HEADS, "num_experts": 2, "moe_intermediate_size": 16, "num_experts_per_tok": 1,
    },
    "gemma": SMALL_HEADS,
    "gemma2": {**SMALL_HEADS, "sliding_window": 8, "attn_logit_softcapping": 1.5},
    "gemma3_text": {**SMALL_HEADS, "sliding_window": 8},
    "gpt_oss": {
        **SMALL_HEADS, **EXPERTS, "sliding_window": 8, "rope_parameters": {"rope_type": "default"},
    },
    "olmo2": SHAPE,
    "deepseek_v3": {
        **SHAPE, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6, "n_routed_experts": 2,
        "moe_intermediate_size": 16, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "falcon": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
        **ENDS,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "codegen": {**WIDE, "n_ctx": 64, "rotary_dim": 4, **ENDS},
    "gpt_neox_japanese": {**SHAPE, "intermediate_multiple_size": 2},
    "xglm": {
        "vocab_size": 64, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "openai-gpt": WIDE,
    "lfm2": {
        **SHAPE, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48,
        "block_multiple_of": 8,
    },
    "jamba": {
        **SHAPE, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1,
        "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "bamba": {
        **SHAPE, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_d_state": 8, "mamba_n_groups": 1,
    },
    "qwen3_next": {
        **SMALL_HEADS, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4},
    "bert": SHAPE,
    "roberta": {**SHAPE, "pad_token_id": 1},
    "distilbert": {
        "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64,
        "max_position_embeddings": 64,
    },
    "megatron-bert": SHAPE,
    "rembert": {**SHAPE, "input_embedding_size": 32, "output_embedding_size": 32},
    "roformer": SHAPE,
    "mpnet": {**SHAPE, "pad_token_id": 1},
    "deberta": {**SHAPE, "relative_attention": True, "pos_att_type": "c2p|p2c"},
    "deberta-v2": {**SHAPE, "relative_attention": True, "pos_att_type": "c2p|p2c"},
    "clip_text_model": {**SHAPE, "eos_token_id": 63},
    "vit": VISION,
    "deit": VISION,
    "dinov2": VISION,
    "dinov2_with_registers": VISION,
    "clip_vision_model": VISION,
    "siglip_vision_model": VISION,
    "t5": T5,
    "umt5": T5,
    "bart": BART,
    "marian": BART,
}  # fmt: skip
MASKED = (
    "bert", "roberta", "distilbert", "megatron-bert", "rembert", "roformer", "mpnet", "deberta",
    "deberta-v2",
)  # fmt: skip
IMAGES = tuple(family for family, config in CONFIGS.items() if config is VISION)
PLAIN = ("clip_text_model", *IMAGES)
PAIRED = ("t5", "umt5", "bart", "marian")


def build(family: str, **more: Any) -> Any:
    """Make a model of a family with random weights, the same every time."""
    import transformers

    config = transformers.AutoConfig.for_model(family, **{**CONFIGS[family], **more})
    auto = transformers.AutoModelForCausalLM
    if family in MASKED:
        auto = transformers.AutoModelForMaskedLM
    if family in PAIRED:
        auto = transformers.AutoModelForSeq2SeqLM
    elif family in PLAIN:
        auto = transformers.AutoModel
    torch.manual_seed(5)
    model = auto.from_config(config).eval()
    model.config.architectures = [type(model).__name__]  # as a saved model has it
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # The initial weights are small, so that attention is all but uniform; CLIP's are not,
            # and more of them would make it so peaked that half precision says nothing.
            if weight.ndim == 2 and any(part in name for part in ("attn", "attention")):
                weight.mul_(min(2.0 if family in IMAGES else 8.0, 0.16 / float(weight.std())))
            if name.endswith("sinks"):
                weight.copy_(torch.linspace(-1.0, 2.0, len(weight)))
            if name.endswith("relative_attention_bias.weight"):
                weight.normal_()
    return model


def fed(ids: Tensor) -> dict[str, Tensor]:
    """Name the input of a model: token ids, or the pixels of images."""
    return {"pixel_values" if ids.is_floating_point() else "input_ids": ids}


def eager(
    module: Any, ids: Tensor, mask: Tensor | None = None, **given: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a model's own eager attention: its output and the weights of every layer."""
    before = module.config._attn_implementation
    switch(module, "eager")
    try:
        with torch.no_grad():
            masked = {} if mask is None else {"attention_mask": mask}
            result = module(**fed(ids), **masked, **given, output_attentions=True)
    finally:
        switch(module, before)
    return result[0], result.attentions


def eager_maps(module: Any, ids: list[int]) -> Tensor:
    """Read the maps of one text (layer, head, query, key) from a model's own eager attention."""
    return torch.stack(eager(module, torch.tensor([ids]))[1])[:, 0].double()


def switch(module: Any, implementation: str) -> None:
    """Choose an attention, also where transformers leaves what was chosen in silence."""
    module.set_attn_implementation(implementation)
    module.config._attn_implementation_internal = implementation
