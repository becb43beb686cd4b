"""Layers: what a TransformerBridge's cache costs, of one attention layer and of one whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headscope.app.bench import contenders
from headscope.app.bench.clock import Call

MODEL = ("forward", "capture", "bridge_cache")
VOCABULARY = 64


class Given(nn.Module):
    """Stands for a projection and returns what is given, so that attention is timed alone."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the values, whatever comes in."""
        return self.values


def bridge_attention(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Prepare the attention layer of a TransformerBridge, alone, with its pattern cached.

    The layer's own code runs: scores, mask, softmax, product and every hook. Its projections
    return the given q, k, v and its output projection returns its input, since headscope starts
    from q, k, v and ends with z as well.

    Returns
    -------
    A call without arguments; it returns ``pattern`` and ``z``.
    """
    heads, length, size = q.shape[1:]
    attention = bridged(gpt2(heads, 8)).blocks[0].attn
    for name, values in (("q", q), ("k", k), ("v", v)):
        flat = values.transpose(1, 2).reshape(1, length, heads * size)
        getattr(attention, name).set_original_component(Given(flat))
    attention.o.set_original_component(nn.Identity())
    cache: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: Any) -> Tensor:
        cache["pattern"] = pattern.detach()
        return pattern

    attention.hook_pattern.add_hook(keep)
    nothing = torch.zeros(1, length, 1)

    def call() -> dict[str, Tensor]:
        cache.clear()
        with torch.no_grad():
            mixed = attention(nothing)[0]
        return {"z": torch.unflatten(mixed, 2, (heads, size)).transpose(1, 2), **cache}

    return call


def model_call(name: str, length: int, heads: int) -> Call:
    """Prepare one of the ``MODEL`` contenders: one layer of GPT-2, random weights, one prompt.

    ``forward`` is the model alone with torch's fused attention; ``bridge_cache`` returns the
    pattern (batch, head, query, key) and nothing else.
    """
    from headscope.probes import capture, load_model

    module = gpt2(heads, length)
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
        wanted = contenders.request(length, "histogram")
        return lambda: capture(model, prompts, stats=wanted.stats, tile=wanted.tile)

    bridge = bridged(module)
    point = "blocks.0.attn.hook_pattern"

    def call() -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(ids, names_filter=point)[1][point]

    return call


def gpt2(heads: int, length: int, layers: int = 1) -> Any:
    """Make layers of GPT-2 with random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=heads * contenders.SIZE,
        n_layer=layers,
        n_head=heads,
        n_positions=length,
        bos_token_id=0,
        eos_token_id=0,
    )
    module: Any = transformers.GPT2LMHeadModel(config)
    return module.eval()


def bridged(module: Any) -> Any:
    """Put a TransformerBridge around a model."""
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    from headscope.probes.bundled import folder

    # A bridge wants a tokenizer although it is given ids.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("headscope/bundled"))
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=module, tokenizer=tokenizer, dtype=torch.float32
    )
