"""A Llama's attention logits and its heads' weights on tokens alone, dense, in float64."""

import copy
from typing import Any

import torch
from torch import Tensor


def rotated(vectors: Tensor, base: float) -> Tensor:
    """Turn vectors (head, position, size) as pairs of channels, half the size apart."""
    half = vectors.shape[-1] // 2
    places = torch.arange(vectors.shape[1], dtype=torch.float64)[:, None]
    angles = places / base ** (torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(vectors[..., :half], vectors[..., half:]) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat((turned.real, turned.imag), -1)


def products(module: Any, ids: list[int], layer: int) -> Tensor:
    """Return q_i·k_i·scale of one layer (head, query, key, channel), keys repeated for groups."""
    double = copy.deepcopy(module).double()
    config = double.config
    entered: list[Tensor] = []
    attention = double.model.layers[layer].self_attn
    attention.register_forward_pre_hook(
        lambda part, args, kwargs: entered.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        double.model(torch.tensor([ids]))
        hidden = entered[0][0]
        size = attention.head_dim
        q, k = (
            projection(hidden).view(len(ids), -1, size).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj)
        )
        q, k = (rotated(tensor, config.rope_parameters["rope_theta"]) for tensor in (q, k))
        k = k.repeat_interleave(len(q) // len(k), 0)
        return q[:, :, None] * k[:, None] / size**0.5


def _normed(vectors: Tensor, norm: Any) -> Tensor:
    scale = torch.rsqrt(vectors.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return vectors * scale * norm.weight.double()


def token_logits(
    module: Any, layer: int, head: int, tokens: Any = slice(None)
) -> tuple[Tensor, Tensor]:
    """Return OV (token, promoted token) and QK (query, key) logits of tokens, each alone."""
    block = module.model.layers[layer]
    attention, config = block.self_attn, module.config
    size, group = (
        attention.head_dim,
        head * config.num_key_value_heads // config.num_attention_heads,
    )
    with torch.no_grad():
        entering = _normed(module.model.embed_tokens.weight.double(), block.input_layernorm)

        def part(projection: Any, at: int) -> Tensor:
            return entering @ projection.weight.double()[at * size : (at + 1) * size].T

        q, k = part(attention.q_proj, head)[tokens], part(attention.k_proj, group)
        output = attention.o_proj.weight.double()[:, head * size : (head + 1) * size]
        written = part(attention.v_proj, group)[tokens] @ output.T
        logits = _normed(written, module.model.norm) @ module.lm_head.weight.double().T
        return logits, q @ k.T / size**0.5
