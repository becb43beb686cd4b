"""Contenders of the benchmark: headscope and what people use instead, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headscope.kernels import attention
from headscope.kernels.request import Request

STATS = ("lse", "max_weight", "entropy", "first_mass", "received", "pooled_mean")
ATTENTION = ("sdpa", "headscope", "eager", "eager_statistics")
MODEL = ("forward", "capture", "bridge_cache")
SIZE = 64
VOCABULARY = 64
TILES = 64

Call = Callable[[], Any]


def attention_inputs(length: int, heads: int, sigma: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw q, k and v (1, head, token, 64); logits have the standard deviation ``sigma``."""
    draw = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, heads, length, SIZE, generator=draw) for _ in range(3))
    return q * sigma, k, v


def request(length: int) -> Request:
    """Ask for the benchmark's statistics, with 64 tiles from 1024 tokens on."""
    return Request(stats=STATS, tile=max(length // TILES, 16))


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Attend with torch's fused attention, which tells nothing of the weights."""
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return {"z": mixed}


def headscope(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Attend with every statistic of the benchmark."""
    return attention.attend(q, k, v, request(q.shape[2]))


def eager(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Attend as Hugging Face's eager attention does: product, mask, softmax, product."""
    return {"z": _eager(q, k, v)[2]}


def eager_statistics(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Attend eagerly, then compute the benchmark's statistics from the whole matrix."""
    scores, weights, z = _eager(q, k, v)
    length = q.shape[2]
    tile = request(length).tile
    tiles = -(-length // tile)
    columns = torch.nn.functional.pad(weights, (0, tiles * tile - length))
    pooled = torch.unflatten(columns, 3, (tiles, tile)).sum(dim=4)
    rows = torch.nn.functional.pad(pooled, (0, 0, 0, tiles * tile - length))
    sizes = torch.full((tiles, 1), float(tile))
    sizes[-1] -= tiles * tile - length
    return {
        "z": z,
        "lse": torch.logsumexp(scores, dim=-1),
        "max_weight": weights.amax(dim=-1),
        "entropy": -torch.xlogy(weights, weights).sum(dim=-1),
        "first_mass": weights[..., 0],
        "received": weights.sum(dim=2) / torch.arange(length, 0, -1),
        "pooled_mean": torch.unflatten(rows, 2, (tiles, tile)).sum(dim=3) / sizes,
    }


def _eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    length = q.shape[2]
    mask = torch.full((length, length), torch.finfo(q.dtype).min).triu_(1)
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[3] ** -0.5
    scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    return scores, weights, torch.matmul(weights, v)


def attention_call(name: str, length: int, heads: int) -> Call:
    """Prepare one of the ``ATTENTION`` contenders at a length."""
    made = {
        "sdpa": sdpa,
        "headscope": headscope,
        "eager": eager,
        "eager_statistics": eager_statistics,
    }[name]
    q, k, v = attention_inputs(length, heads)

    def call() -> Any:
        with torch.no_grad():
            return made(q, k, v)

    return call


def model_call(name: str, length: int, heads: int) -> Call:
    """Prepare one of the ``MODEL`` contenders: one layer of GPT-2, random weights, one prompt.

    ``forward`` is the model alone with torch's fused attention; ``bridge_cache`` returns the
    pattern (batch, head, query, key) and nothing else.
    """
    import transformers

    from headscope.probes import capture, load_model

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=heads * SIZE,
        n_layer=1,
        n_head=heads,
        n_positions=length,
        bos_token_id=0,
        eos_token_id=0,
    )
    module: Any = transformers.GPT2LMHeadModel(config)
    module.eval()
    draw = torch.Generator().manual_seed(length)
    ids = torch.randint(VOCABULARY, (1, length), generator=draw)
    if name == "forward":
        module.set_attn_implementation("sdpa")

        def forward() -> Any:
            with torch.no_grad():
                return module(ids, use_cache=False).logits

        return forward
    if name == "capture":
        model, prompts = load_model(module), [[int(one) for one in ids[0]]]
        return lambda: capture(model, prompts, stats=STATS, tile=request(length).tile)

    from transformer_lens.model_bridge import TransformerBridge

    from headscope.probes.bundled import folder

    # A bridge wants a tokenizer although it is given ids.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder())
    bridge: Any = TransformerBridge.boot_transformers(
        "gpt2", hf_model=module, tokenizer=tokenizer, dtype=torch.float32
    )
    point = "blocks.0.attn.hook_pattern"

    def call() -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(ids, names_filter=point)[1][point]

    return call
