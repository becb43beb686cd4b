"""A Llama with edges patched, dense, in float64, input by input and head by head."""

import copy
from typing import Any

import numpy as np
import torch
from llama_oracle import rotated
from torch import Tensor

from headscope.analyses._interventions.edge_graph import EdgeGraph


def logits(module: Any, ids: list[int], other: list[int], removed: np.ndarray) -> Tensor:
    """Return the logits on ``ids`` with edges (target, source) patched from ``other``."""
    double = copy.deepcopy(module).double()
    config = double.config
    graph = EdgeGraph(config.num_hidden_layers, config.num_attention_heads, parallel=False)
    nothing = np.zeros_like(removed)
    with torch.no_grad():
        corrupted: dict[str, Tensor] = {}
        _pass(double, graph, other, nothing, corrupted, corrupted)
        return _pass(double, graph, ids, removed, {}, corrupted)


def _pass(
    module: Any,
    graph: EdgeGraph,
    ids: list[int],
    removed: np.ndarray,
    written: dict[str, Tensor],
    corrupted: dict[str, Tensor],
) -> Tensor:
    config, size = module.config, module.model.layers[0].self_attn.head_dim
    rows = dict(zip(graph.targets, removed, strict=True))

    def read(target: str) -> Tensor:
        """Sum what was written so far, source by source."""
        return sum(
            (corrupted if gone else written)[name]
            for name, gone in zip(graph.sources, rows[target], strict=True)
            if name in written
        )

    written["embedding"] = module.model.embed_tokens.weight[torch.tensor(ids)]
    later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for layer, block in enumerate(module.model.layers):
        attention, made = block.self_attn, {}
        for head in range(config.num_attention_heads):
            own = head * config.num_key_value_heads // config.num_attention_heads
            q, k, v = (
                block.input_layernorm(read(f"L{layer}H{head}.{part}"))
                @ projection.weight[at * size : (at + 1) * size].T
                for part, projection, at in (
                    ("q", attention.q_proj, head),
                    ("k", attention.k_proj, own),
                    ("v", attention.v_proj, own),
                )
            )
            q, k = (
                rotated(tensor[None], config.rope_parameters["rope_theta"])[0] for tensor in (q, k)
            )
            weights = (q @ k.T / size**0.5).masked_fill(later, -torch.inf).softmax(-1)
            output = attention.o_proj.weight[:, head * size : (head + 1) * size]
            made[f"L{layer}H{head}"] = weights @ v @ output.T
        written |= made
        written[f"L{layer}.mlp"] = block.mlp(block.post_attention_layernorm(read(f"L{layer}.mlp")))
    return module.lm_head(module.model.norm(read("logits")))
