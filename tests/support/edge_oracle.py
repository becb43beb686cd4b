"""A decoder with edges patched, dense, in float64, input by input and head by head.

Llama, Gemma 2 and 3, and OLMo 2. Every head computes the queries, keys and values of all heads from
its own inputs and keeps its own. Where the layer has a norm behind its heads, what reads them sums
them first, each as it reads it, and takes the norm of that.
"""

import copy
from typing import Any

import numpy as np
import torch
from llama_oracle import rotated
from torch import Tensor

from headscope.analyses._interventions.edge_graph import EdgeGraph


def graph_of(module: Any) -> EdgeGraph:
    """Return the edges of a model."""
    config = module.config
    return EdgeGraph(config.num_hidden_layers, config.num_attention_heads, parallel=False)


def logits(module: Any, ids: list[int], other: list[int], removed: np.ndarray) -> Tensor:
    """Return the logits on ``ids`` with edges (target, source) patched from ``other``."""
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        _, corrupted = _pass(double, _embedding(double, other))
        share = torch.from_numpy(removed).double()
        return _pass(double, _embedding(double, ids), share, corrupted)[0]


def slopes(
    module: Any, ids: list[int], other: list[int], metric: Any, shares: list[float]
) -> Tensor:
    """Return the derivative of a metric in the shares of all edges (target, source), at none.

    Each edge adds a share of what its source writes on ``other``, less what it writes on ``ids``;
    the mean over embeddings that are these shares of the way from ``ids`` to ``other``.
    """
    double = copy.deepcopy(module).double().requires_grad_(False)
    clean, corrupted = (_embedding(double, each) for each in (ids, other))
    (_, own), (_, others) = _pass(double, clean), _pass(double, corrupted)
    change = {name: others[name] - own[name] for name in own}
    total = torch.zeros(graph_of(double).edges.shape, dtype=torch.float64)
    for at in shares:
        share = torch.zeros_like(total, requires_grad=True)
        out, _ = _pass(double, clean + at * (corrupted - clean), share, change=change)
        (slope,) = torch.autograd.grad(metric(out), share)
        total += slope / len(shares)
    return total


def _embedding(module: Any, ids: list[int]) -> Tensor:
    return module.model.embed_tokens(torch.tensor(ids))


def _pass(
    module: Any,
    embedding: Tensor,
    share: Tensor | None = None,
    corrupted: dict[str, Tensor] | None = None,
    change: dict[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits, and what every source writes; heads what a norm behind them is given."""
    graph, blocks = graph_of(module), module.model.layers
    rows = {name: None if share is None else share[at] for at, name in enumerate(graph.targets)}
    post = [hasattr(block, "post_feedforward_layernorm") for block in blocks]
    written: dict[str, Tensor] = {"embedding": embedding}

    def as_read(target: str, source: str) -> Tensor:
        now, row = written[source], rows[target]
        if row is None:
            return now
        moved = change[source] if corrupted is None else corrupted[source] - now
        return now + row[graph.sources.index(source)] * moved

    def read(target: str, layers: int, mlps: int) -> Tensor:
        """Sum what the first layers' heads and MLPs have written."""
        stream = as_read(target, "embedding")
        for layer in range(layers):
            heads = sum(as_read(target, f"L{layer}H{head}") for head in range(graph.heads))
            norm = blocks[layer].post_attention_layernorm if post[layer] else (lambda total: total)
            stream = stream + norm(heads)
            if layer < mlps:
                stream = stream + as_read(target, f"L{layer}.mlp")
        return stream

    for layer, block in enumerate(blocks):
        made = {}
        for head in range(graph.heads):
            inputs = [read(f"L{layer}H{head}.{part}", layer, layer) for part in "qkv"]
            made[f"L{layer}H{head}"] = _head(module, layer, head, *inputs)
        written |= made
        mlp_input = read(f"L{layer}.mlp", layer + 1, layer)
        names = ("pre_feedforward_layernorm",) if post[layer] else ("post_attention_layernorm",)
        for name in names:
            mlp_input = getattr(block, name, lambda stream: stream)(mlp_input)
        out = block.mlp(mlp_input)
        written[f"L{layer}.mlp"] = block.post_feedforward_layernorm(out) if post[layer] else out
    last = read("logits", len(blocks), len(blocks))
    return _capped(
        module.lm_head(module.model.norm(last)),
        getattr(module.config, "final_logit_softcapping", None),
    ), written


def _head(module: Any, layer: int, head: int, *inputs: Tensor) -> Tensor:
    """Return what one head makes of what its queries, keys and values read."""
    config, block = module.config, module.model.layers[layer]
    attention = block.self_attn
    size, heads = attention.head_dim, config.num_attention_heads
    own = head * config.num_key_value_heads // heads
    projected = []
    for part, stream in zip("qkv", inputs, strict=True):
        entered = getattr(block, "input_layernorm", lambda stream: stream)(stream)
        values = entered @ getattr(attention, f"{part}_proj").weight.T
        norm = getattr(attention, f"{part}_norm", None)
        if norm is not None and len(norm.weight) == values.shape[-1]:
            values = norm(values)
        values = values.unflatten(-1, (-1, size))
        if norm is not None and len(norm.weight) == size != heads * size:
            values = norm(values)
        projected.append(values[:, head if part == "q" else own])
    q, k, v = projected
    kind = (getattr(config, "layer_types", None) or ["full_attention"] * (layer + 1))[layer]
    base = config.rope_parameters
    base = base.get(kind, base)["rope_theta"]
    q, k = (rotated(each[None], base)[0] for each in (q, k))
    scores = _capped(q @ k.T * attention.scaling, getattr(config, "attn_logit_softcapping", None))
    places = torch.arange(len(q))
    distance = places[:, None] - places
    hidden = distance < 0
    if kind == "sliding_attention":
        hidden |= distance >= config.sliding_window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return weights @ v @ attention.o_proj.weight[:, head * size : (head + 1) * size].T


def _capped(values: Tensor, cap: float | None) -> Tensor:
    return values if cap is None else cap * torch.tanh(values / cap)
