"""The recipe of the series: a two-layer Llama, and the steps whose weights ship."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from headscope_training.induction import rows
from headscope_training.recipe import Batch, Phase, Recipe
from headscope_training.words import llama_config, write_word_tokenizer

ATTENTION_RATE, OTHER_RATE = 3e-4, 2e-3
STEPS = (0, 50, 100, 200, 300, 350, 375, 400, 425, 450, 500, 600, 800, 1000)


def attention_weights(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Weights of the attention of every layer."""
    return [weight for name, weight in model.named_parameters() if "self_attn" in name]


def normalize_gradient(weight: torch.nn.Parameter) -> None:
    """Scale a gradient to a mean square of 1.

    Adam would step every entry alike, so all heads of a layer would grow alike and come out the
    same; with one scale a matrix, a head that is ahead stays ahead.
    """
    assert weight.grad is not None
    weight.grad /= weight.grad.square().mean().sqrt() + 1e-12


def mean_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy of each next token."""
    logits = model(ids[:, :-1]).logits
    loss = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (loss * weights).sum() / weights.sum()


class InductionRecipe(Recipe):
    """Llama, 2 layers of 4 heads, width 64."""

    seed, warmup, snapshots = rows.SEED, 50, STEPS
    phases = (Phase(STEPS[-1], 1.0, ((rows.LENGTH, 1.0),)),)

    def __init__(self) -> None:
        self.forward = mean_loss

    def config(self) -> LlamaConfig:
        return llama_config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=64,
            max_position_embeddings=256,
        )

    def build(self) -> LlamaForCausalLM:
        return LlamaForCausalLM(self.config())

    def prepare(self, out: Path) -> None:
        write_word_tokenizer(out)

    def draw(self, step: int) -> Batch:
        return rows.draw(self.generator(step))

    def loss(self, model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.forward(model, batch.ids, batch.weights), {}

    def limit_gradients(self, model: PreTrainedModel) -> None:
        for weight in attention_weights(model):
            normalize_gradient(weight)

    def optimizers(self, model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
        attention = attention_weights(model)
        attention_ids = {id(weight) for weight in attention}
        other_weights = [weight for weight in model.parameters() if id(weight) not in attention_ids]
        return [
            (torch.optim.SGD(attention, momentum=0.9), ATTENTION_RATE),
            (torch.optim.AdamW(other_weights, betas=(0.9, 0.98), weight_decay=0.0), OTHER_RATE),
        ]


RECIPE = InductionRecipe()
