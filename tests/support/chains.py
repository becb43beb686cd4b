"""Transformers trained on chains of references, a minimal form of the retrieval problem.

Every word of a text is a pair, a name and what it stands for: a value, or a name given before. The
model is asked, at every word, for the value at the end of the chain that begins there. Chains of
no, one, two and more steps are asked side by side: the implicit curriculum of Musat, Mechanism and
Emergence of Stacked Attention Heads (2411.12118), in which heads for longer chains come after those
that they build on.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

NAMES, VALUES, PAIRS = 12, 12, 12
STANDS = NAMES + VALUES
WORDS = NAMES * STANDS
BATCH = 64


class Rows(NamedTuple):
    """Texts and, for every word (row, PAIRS), the value asked for and the word referred to.

    ``values`` are the words of the answers, ``steps`` how far they are, ``refers`` the place of the
    word that is referred to, -1 where a value is given.
    """

    ids: Tensor
    values: Tensor
    steps: Tensor
    refers: Tensor


def draw(rows: int, generator: torch.Generator, *, linked: float = 0.65) -> Rows:
    """Draw texts, in which a pair refers to an earlier one with the chance `linked`."""
    names = torch.stack([torch.randperm(NAMES, generator=generator)[:PAIRS] for _ in range(rows)])
    stands = torch.randint(NAMES, STANDS, (rows, PAIRS), generator=generator)
    refers = torch.full((rows, PAIRS), -1)
    values, steps = stands.clone(), torch.zeros(rows, PAIRS, dtype=torch.long)
    row = torch.arange(rows)
    for pair in range(1, PAIRS):
        link = torch.rand(rows, generator=generator) < linked
        earlier = torch.randint(pair, (rows,), generator=generator)
        refers[:, pair] = torch.where(link, earlier, -1)
        stands[:, pair] = torch.where(link, names[row, earlier], stands[:, pair])
        values[:, pair] = torch.where(link, values[row, earlier], values[:, pair])
        steps[:, pair] = torch.where(link, steps[row, earlier] + 1, 0)
    return Rows(names * STANDS + stands, values - NAMES, steps, refers)


def build(
    seed: int, layers: int = 2, heads: int = 1, width: int = 64
) -> transformers.GPT2LMHeadModel:
    """A GPT-2 without positions; a word is the sum of its name and what that stands for."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_positions=PAIRS, n_embd=width, n_layer=layers, n_head=heads, n_inner=4, vocab_size=WORDS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        module.transformer.wpe.weight.zero_().requires_grad_(False)
        words = torch.arange(WORDS)
        table = module.transformer.wte.weight.zero_().requires_grad_(False)
        table[words, words // STANDS] = 1.0
        table[words, NAMES + words % STANDS] = 1.0
    return module


def train(
    steps: Sequence[int], *, seed: int = 0, rate: float = 3e-3, shuffled: bool = False,
    linked: float = 0.65, **shape: int,
) -> Iterator[tuple[int, transformers.GPT2LMHeadModel]]:  # fmt: skip
    """Train, and yield the model at some steps; it then goes on."""
    generator = torch.Generator().manual_seed(seed)
    module = build(seed, **shape)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(max(steps) + 1):
        if step in steps:
            yield step, module
        rows = draw(BATCH, generator, linked=linked)
        values = rows.values
        if shuffled:
            values = values[torch.randperm(BATCH, generator=generator)]
        logits = module(rows.ids).logits[..., :VALUES]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
