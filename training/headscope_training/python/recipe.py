"""The recipe of the Python model: a GPT-2 on the standard library of the running Python."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from headscope.probes.prompts.library import read_library
from headscope_training.python.tokenizer import SIZE, train_tokenizer, write_tokenizer
from headscope_training.recipe import Batch, Phase, Recipe, causal_mask, random_repeats

WIDTH, HEADS = 192, 6
# About as many tokens a step at every length.
BATCH = {128: 20, 1024: 2}


class Repeats(NamedTuple):
    """Share of the rows that are random tokens said again and again, and their longest period.

    Copying starts with near copies and grows to any distance.
    """

    share: float
    period: int


PHASES = (
    Phase(1400, 2.5e-3, ((128, 1.0),), Repeats(0.35, 64)),
    Phase(2400, 2.5e-3, ((128, 0.5), (1024, 0.5)), Repeats(0.15, 512), falls=True),
)


def set_positions(model: GPT2LMHeadModel) -> None:
    """Start the learned positions as waves of 4 to 4096 tokens, as large as the tokens.

    From random positions a head learns to look one token back for each position apart, which takes
    thousands of steps; from waves it is one rotation for all of them.
    """
    lengths = 4 * 1024 ** torch.linspace(0, 1, WIDTH // 2)
    angles = 2 * math.pi * torch.arange(1024)[:, None] / lengths
    scale = model.transformer.wte.weight.detach().square().mean().sqrt()
    waves = torch.cat((angles.sin(), angles.cos()), 1) * 2**0.5 * scale
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(waves)


def hidden_states(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """Last hidden states, the arithmetic of `GPT2Model` in fewer steps.

    Short rows form their attention matrix: on CPU the blockwise backward is slower there.
    """
    batch, length = ids.shape
    inner = model.transformer
    x = functional.embedding(ids, inner.wte.weight) + inner.wpe.weight[:length]
    blocks: Any = inner.h
    for block in blocks:
        first, second = block.ln_1, block.ln_2
        y = functional.layer_norm(x, (WIDTH,), first.weight, first.bias)
        mixed = functional.linear(y, block.attn.c_attn.weight.T, block.attn.c_attn.bias)
        query, key, value = mixed.view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if length <= 128:
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + causal_mask(length)
            z = scores.softmax(-1).to(value.dtype) @ value
        else:
            z = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        z = z.transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + functional.linear(z, block.attn.c_proj.weight.T, block.attn.c_proj.bias)
        y = functional.layer_norm(x, (WIDTH,), second.weight, second.bias)
        y = functional.linear(y, block.mlp.c_fc.weight.T, block.mlp.c_fc.bias)
        y = functional.gelu(y, approximate="tanh")
        x = x + functional.linear(y, block.mlp.c_proj.weight.T, block.mlp.c_proj.bias)
    last = inner.ln_f
    return functional.layer_norm(x, (WIDTH,), last.weight, last.bias)


def mean_loss(model: GPT2LMHeadModel, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy of each next token."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = functional.linear(hidden_states(model, ids[:, :-1]), model.lm_head.weight)
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return (loss * weights.flatten()).sum() / weights.sum()


class PythonRecipe(Recipe):
    """GPT-2, 6 layers of 6 heads, width 192, 1024 learned positions."""

    seed, phases, warmup, processes = 21, PHASES, 150, 2
    # The files to train on as one row of ids, END before each.
    stream: Tensor

    def __init__(self) -> None:
        self.forward = mean_loss

    def config(self) -> GPT2Config:
        return GPT2Config(
            vocab_size=SIZE,
            n_positions=1024,
            n_embd=WIDTH,
            n_layer=6,
            n_head=HEADS,
            n_inner=2 * WIDTH,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            dtype="float32",
        )

    def build(self) -> GPT2LMHeadModel:
        model = GPT2LMHeadModel(self.config())
        set_positions(model)
        return model

    def prepare(self, out: Path) -> None:
        texts = [file.text for file in read_library(held_out=False)]
        if (out / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        else:
            tokenizer = train_tokenizer(texts)
            write_tokenizer(tokenizer, out)
        ids = [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids]
        characters = sum(map(len, texts))
        print(f"{len(texts)} files, {characters} characters, {len(ids)} tokens", flush=True)
        self.stream = torch.tensor(ids)

    def draw(self, step: int) -> Batch:
        generator = self.generator(step)
        length = self.draw_length(step, generator)
        size = BATCH[length]
        starts = torch.randint(len(self.stream) - length, (size,), generator=generator)
        rows = torch.stack([self.stream[start : start + length] for start in starts.tolist()])
        weights = torch.ones(size, length)
        repeats: Repeats = self.phase_at(step)[0].mixture
        for row in range(size):
            if torch.rand((), generator=generator) < repeats.share:
                share = torch.rand((), generator=generator).item()
                period = int(2 * (min(repeats.period, length // 2) / 2) ** share)
                rows[row] = random_repeats(1, SIZE, period, length, generator)
                # The first time cannot be foreseen.
                weights[row, :period] = 0
        return Batch(functional.pad(rows, (1, 0)), weights)

    def loss(self, model: GPT2LMHeadModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.forward(model, batch.ids, batch.weights), {}

    def optimizers(self, model: GPT2LMHeadModel) -> list[tuple[torch.optim.Optimizer, float]]:
        # Muon for the matrices inside the layers, AdamW for embeddings, gains and biases.
        inner = [p for p in model.transformer.h.parameters() if p.ndim == 2]
        inner_ids = {id(p) for p in inner}
        outer = [p for p in model.parameters() if id(p) not in inner_ids]
        groups = [
            {"params": [p for p in outer if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in outer if p.ndim != 2], "weight_decay": 0.0},
        ]
        muon = torch.optim.Muon(inner, adjust_lr_fn="match_rms_adamw")
        return [(muon, 2.0), (torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True), 1.0)]


RECIPE = PythonRecipe()
