"""The cache of a TransformerBridge: of one attention layer and of whole models."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from headscope.probes import capture, load_model
from headscope.probes.bundled import folder
from headscope_benchmarks.shapes import request
from headscope_benchmarks.timing import Call

LONG_LAYERS = 4
VOCABULARY = 64
SIZE = 64


class Constant(nn.Module):
    """Replaces a projection and returns fixed values, so that attention is timed alone."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the values, whatever comes in."""
        return self.values


def bridge_attention(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Prepare the attention layer of a TransformerBridge, alone, with its pattern cached.

    The layer's own code runs: scores, mask, softmax, product and every hook. Its projections
    return q, k, v and its output projection returns its input, since headscope starts from q, k, v
    and ends with z as well.

    Returns
    -------
    A call without arguments; it returns ``pattern`` and ``z``.
    """
    heads, length, size = q.shape[1:]
    attention = bridge_of(gpt2(heads, 8)).blocks[0].attn
    for name, values in (("q", q), ("k", k), ("v", v)):
        flat = values.transpose(1, 2).reshape(1, length, heads * size)
        getattr(attention, name).set_original_component(Constant(flat))
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
    """Prepare one of ``baselines.MODEL``: one layer of GPT-2, random weights, one prompt.

    ``forward`` is the model alone with torch's fused attention, ``capture`` records the statistics
    up to the histogram, ``bridge_cache`` returns a list of the pattern (batch, head, query, key).
    """
    spec = request(length, "histogram")
    return _model_call(name, length, heads, 1, {"stats": spec.stats, "tile": spec.tile})


def long_call(name: str, length: int, heads: int) -> Call:
    """Prepare the same with four layers, the default statistics, and the patterns of all layers."""
    return _model_call(name, length, heads, LONG_LAYERS, {})


def _model_call(name: str, length: int, heads: int, layers: int, options: dict[str, Any]) -> Call:
    module = gpt2(heads, length, layers)
    draw = torch.Generator().manual_seed(length)
    ids = torch.randint(VOCABULARY, (1, length), generator=draw)
    if name == "capture":
        model, prompts = load_model(module), ids.tolist()
        return lambda: capture(model, prompts, **options)
    if name == "forward":
        module.set_attn_implementation("sdpa")
        return torch.no_grad()(lambda: module(ids, use_cache=False).logits)
    bridge = bridge_of(module)
    points = [f"blocks.{layer}.attn.hook_pattern" for layer in range(layers)]

    @torch.no_grad()
    def call() -> list[Tensor]:
        cache = bridge.run_with_cache(ids, names_filter=points)[1]
        return [cache[point] for point in points]

    return call


def gpt2(heads: int, length: int, layers: int = 1) -> Any:
    """Make layers of GPT-2 with random weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=heads * SIZE,
        n_layer=layers,
        n_head=heads,
        n_positions=length,
        bos_token_id=0,
        eos_token_id=0,
    )
    module: Any = transformers.GPT2LMHeadModel(config)
    return module.eval()


def bridge_of(module: Any) -> Any:
    """Put a TransformerBridge around a model."""
    # A bridge wants a tokenizer although it is given ids.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("headscope/bundled"))
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=module, tokenizer=tokenizer, dtype=torch.float32
    )
