"""A one-layer transformer trained on the data of Tian et al., Scan and Snap (2305.16380).

The last word of a text, its query, leaves two next words to choose from. Which of them follows can
be told from the words before alone: some occur with one next word only (distinct), more or less
often, the others alike with all (common). There are no positions. As in the paper attention is one
matrix of query and key words, which starts at zero, so that it looks everywhere alike; values are
the words themselves, and a decoder, which learns faster, reads their weighted mean.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

QUERIES, NEXT = range(2), range(2, 6)
# Words that occur with one next word, three of each, and what share of the text they are.
DISTINCT_SHARES = (0.2, 0.1, 0.05)
DISTINCT = range(6, 6 + len(NEXT) * len(DISTINCT_SHARES))
COMMON = range(DISTINCT.stop, DISTINCT.stop + 3)
WORDS = COMMON.stop
LENGTH, BATCH = 48, 64


class Rows(NamedTuple):
    """Texts (row, LENGTH), the query last, and the word that follows each."""

    ids: Tensor
    following: Tensor


def draw(rows: int, generator: torch.Generator, *, told: bool = True) -> Rows:
    """Draw texts; where they are not `told`, all words of a text occur with every next word."""
    following = torch.randint(len(NEXT), (rows,), generator=generator)
    kind = following if told else torch.randint(len(NEXT), (rows,), generator=generator)
    shares = torch.zeros(len(NEXT), WORDS)
    for place in range(len(NEXT)):
        shares[place, distinct(place)] = torch.tensor(DISTINCT_SHARES)
        shares[place, list(COMMON)] = (1 - sum(DISTINCT_SHARES)) / len(COMMON)
    ids = torch.multinomial(shares[kind], LENGTH, replacement=True, generator=generator)
    ids[:, -1] = following // (len(NEXT) // len(QUERIES))
    return Rows(ids, following + NEXT.start)


def distinct(following: int) -> list[int]:
    """The words that occur with one next word alone, the most frequent first."""
    count = len(DISTINCT_SHARES)
    return list(range(DISTINCT.start + following * count, DISTINCT.start + (following + 1) * count))


@torch.no_grad()
def build() -> transformers.GPT2LMHeadModel:
    """The model before training: uniform attention, and a decoder that knows nothing."""
    width = 2 * WORDS
    config = transformers.GPT2Config(
        n_positions=LENGTH, n_embd=width, n_layer=1, n_head=1, n_inner=4, vocab_size=WORDS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config).eval()
    for weight in module.parameters():
        weight.zero_().requires_grad_(False)
    words = torch.arange(WORDS)
    module.transformer.wte.weight[words, words] = 1.0
    block = module.transformer.h[0]
    # The identity on one word.
    share = 1 / width
    block.ln_1.weight.fill_((share * (1 - share) + block.ln_1.eps) ** 0.5)
    block.ln_1.bias.fill_(share)
    block.attn.c_attn.weight[words, words] = width**0.5
    block.attn.c_attn.weight[words, 2 * width + words] = 1.0
    # The weighted mean of the words, large beside the query's own; the last norm scales it.
    block.attn.c_proj.weight[words, WORDS + words] = 30.0
    module.transformer.ln_f.weight.fill_(1.0)
    return module


def train(
    steps: Sequence[int], *, seed: int = 0, told: bool = True, decoder_rate: float = 0.02,
    attention_rate: float = 10.0,
) -> Iterator[tuple[int, transformers.GPT2LMHeadModel]]:  # fmt: skip
    """Train by plain gradient descent, and yield the model at some steps; it then goes on."""
    generator = torch.Generator().manual_seed(seed)
    module = build()
    keys, decoder = module.transformer.h[0].attn.c_attn.weight, module.lm_head.weight
    width = keys.shape[0]
    keys.requires_grad_(True)
    decoder.requires_grad_(True)
    for step in range(max(steps) + 1):
        if step in steps:
            yield step, module
        rows = draw(BATCH, generator, told=told)
        loss = torch.nn.functional.cross_entropy(module(rows.ids).logits[:, -1], rows.following)
        slope, decoding = torch.autograd.grad(loss, [keys, decoder])
        with torch.no_grad():
            keys[:, width : 2 * width] -= attention_rate * slope[:, width : 2 * width]
            decoder -= decoder_rate * decoding
