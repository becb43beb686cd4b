"""The recipe of the story model: a Llama on text made by the task generators."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from headscope_training.recipe import Batch, Recipe, causal_mask
from headscope_training.story.phases import PHASES
from headscope_training.story.rows import rows
from headscope_training.words import llama_config, write_word_tokenizer

BATCH = {96: 48, 192: 24, 512: 9, 1024: 4}


def _rotate_half(x: Tensor) -> Tensor:
    """The rotated half of the rotary embedding, as transformers' `rotate_half`."""
    low, high = x.chunk(2, -1)
    return torch.cat((-high, low), -1)


def hidden_states(model: LlamaForCausalLM, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Last hidden states, the arithmetic of `LlamaModel` with fewer and larger products.

    Short rows form their attention matrix: on CPU the blockwise backward is slower there.
    """
    batch, length = ids.shape
    x = functional.embedding(ids, model.model.embed_tokens.weight)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        y = functional.rms_norm(x, (256,), layer.input_layernorm.weight, 1e-6)
        joint = torch.cat(
            (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        )
        mixed = functional.linear(y, joint).view(batch, length, 16, 32)
        both, value = mixed[:, :, :12], mixed[:, :, 12:]
        both = both * cos + _rotate_half(both) * sin
        query = both[:, :, :8].transpose(1, 2)
        key, value = both[:, :, 8:].transpose(1, 2), value.transpose(1, 2)
        if length <= 192:
            scores = query.reshape(batch, 4, 2 * length, 32) @ key.transpose(-1, -2)
            scores = scores.view(batch, 4, 2, length, length) * 32**-0.5 + causal_mask(length)
            weights = scores.softmax(-1).view(batch, 4, 2 * length, length).to(value.dtype)
            z = (weights @ value).view(batch, 8, length, 32)
        else:
            key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
            z = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + functional.linear(
            z.transpose(1, 2).reshape(batch, length, 256), attention.o_proj.weight
        )
        y = functional.rms_norm(x, (256,), layer.post_attention_layernorm.weight, 1e-6)
        gate, up = functional.linear(
            y, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
        ).chunk(2, -1)
        x = x + functional.linear(functional.silu(gate) * up, mlp.down_proj.weight)
    return functional.rms_norm(x, (256,), model.model.norm.weight, 1e-6)


def rotation(model: LlamaForCausalLM, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, (1, length, 1, 32)."""
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
    return cos[:, :, None].to(dtype), sin[:, :, None].to(dtype)


def _by_task(
    loss: Tensor, weights: Tensor, counted: Tensor, kinds: Sequence[str]
) -> dict[str, float]:
    """Mean loss on answers, by task."""
    full = torch.zeros_like(weights)
    full[counted] = loss
    answers = weights >= 0.5
    means = {}
    for kind in sorted(set(kinds) - {"text"}):
        chosen = answers & torch.tensor([name == kind for name in kinds])[:, None]
        if chosen.any():
            means[kind] = full[chosen].mean().item()
    return means


class StoryRecipe(Recipe):
    """Llama, 4 layers of 8 query heads on 4 key-value heads, width 256."""

    seed, phases, warmup = 20, PHASES, 200

    def __init__(self) -> None:
        self.forward = hidden_states

    def config(self) -> LlamaConfig:
        return llama_config(
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=512,
            max_position_embeddings=1024,
        )

    def build(self) -> LlamaForCausalLM:
        return LlamaForCausalLM(self.config())

    def prepare(self, out: Path) -> None:
        write_word_tokenizer(out)

    def draw(self, step: int) -> Batch:
        length = self.draw_length(step, self.generator(step))
        sources = self.phase_at(step)[0].mixture
        ids, weights, kinds = rows(sources, BATCH[length], length, f"corpus {self.seed} {step}")
        return Batch(torch.tensor(ids), torch.tensor(weights), kinds)

    def loss(self, model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        ids, weights, kinds = batch
        cos, sin = rotation(model, weights.shape[1], torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.forward(model, ids[:, :-1], cos, sin)
            # Only predicted positions are unembedded.
            counted = weights > 0
            logits = functional.linear(hidden[counted], model.lm_head.weight)
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none")
        mean = (loss * weights[counted]).sum() / weights.sum()
        return mean, _by_task(loss.detach(), weights, counted, kinds)

    def optimizers(self, model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim != 2]
        groups = [
            {"params": matrices, "weight_decay": 0.05},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return [(torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True), 1.0)]


RECIPE = StoryRecipe()
