"""Measurements that the evaluations share, on transformers' own forward pass and attention maps.

So no number depends on headscope's capture.
"""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Heads = Sequence[tuple[int, int]]


@torch.inference_mode()
def predict_next(model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and correctness of every next token (row, position)."""
    logits = model(rows[:, :-1]).logits
    loss = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    return loss, logits.argmax(-1) == rows[:, 1:]


@torch.inference_mode()
def head_scores(model: Any, rows: Tensor) -> dict[str, Tensor]:
    """Mean weight (layer, head) by what kinds of heads look at, in ``<bos>`` and tokens said twice.

    At each position of the second time: the token after the earlier one (induction), and the
    earlier one (duplicate); at every position: the one before, and ``<bos>``.
    """
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    maps = torch.stack(eager(rows, output_attentions=True).attentions)
    period = (rows.shape[1] - 1) // 2
    second, every = torch.arange(period + 1, 2 * period + 1), torch.arange(1, 2 * period + 1)
    looked_at = {
        "induction": (second, second - period + 1),
        "duplicate": (second, second - period),
        "previous": (every, every - 1),
        "first": (every, torch.zeros_like(every)),
    }
    return {
        kind: maps[:, :, :, queries, keys].mean((1, 3))
        for kind, (queries, keys) in looked_at.items()
    }


def without(model: Any, heads: Heads) -> Any:
    """A copy of a Llama or GPT-2 whose output projections do not read some heads."""
    model = copy.deepcopy(model)
    size = model.config.hidden_size // model.config.num_attention_heads
    size = getattr(model.config, "head_dim", size)
    with torch.no_grad():
        for layer, head in heads:
            # GPT-2 keeps its matrices as (input, output).
            weight = (
                model.transformer.h[layer].attn.c_proj.weight
                if hasattr(model, "transformer")
                else model.model.layers[layer].self_attn.o_proj.weight.T
            )
            weight[size * head : size * (head + 1)] = 0
    return model


def draw_other_heads(
    model: Any, heads: Heads, excluded: Heads, draws: int, seed: int
) -> list[list[tuple[int, int]]]:
    """Draw as many heads as given, without them and the excluded ones, several times."""
    rng = random.Random(seed)
    layers, width = model.config.num_hidden_layers, model.config.num_attention_heads
    others = [(layer, head) for layer in range(layers) for head in range(width)]
    others = [head for head in others if head not in heads and head not in excluded]
    return [rng.sample(others, len(heads)) for _ in range(draws)]


def lowest(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The lowest of each score."""
    return {name: min(score[name] for score in scores) for name in scores[0]}


def mean_of(flags: Tensor) -> float:
    """Mean to the four digits of the cards."""
    return round(float(flags.double().mean()), 4)


def to_json(numbers: dict[str, Any]) -> str:
    """Text of a card."""
    return json.dumps(numbers, indent=1) + "\n"
