"""A GPT-2 of zeros whose heads and MLPs are set one by one, by what they read and write.

The residual stream is divided into spaces with a coordinate for each label: the token, the place
in the text, and what heads write. The norms divide by a constant (their epsilon is large against
every variance, and their weight takes it back), and a coordinate that nothing reads keeps the
mean at 0: each layer reads the sum of what was written, so that effects of nodes are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

BOS, UNKNOWN = "<bos>", "<unk>"
TOKEN, POSITION, OUT, BALANCE = "token", "position", "out", "balance"
EPSILON = 1e8
# A score of so much more holds all of the attention in float32.
SHARP = 40.0


class Score(NamedTuple):
    """A term of the attention logit: strength × sum read by the query × sum read by the key.

    A query that reads no coordinate counts as 1.
    """

    query: Sequence[int]
    key: Sequence[int]
    strength: float = SHARP


class HandSet:
    """A GPT-2 in the making.

    Parameters
    ----------
    words
        Words of the vocabulary, behind the special tokens.
    spaces
        Labels of every space that heads write; those of tokens, places and the output are added.
    layers, heads
        Shape of the model.
    positions
        Positions that the model can tell apart; behind them it knows none.
    neurons
        Hidden size of the MLPs.
    """

    def __init__(
        self,
        words: Iterable[str],
        spaces: Mapping[str, Sequence[str]],
        *,
        layers: int,
        heads: int,
        positions: int,
        neurons: int = 1,
    ) -> None:
        self.words = [BOS, UNKNOWN, *dict.fromkeys(words)]
        self.positions = positions
        labels: dict[str, Sequence[str]] = {
            TOKEN: self.words, POSITION: list(map(str, range(positions))), OUT: self.words,
            **spaces, BALANCE: [""],
        }  # fmt: skip
        self._at: dict[str, dict[str, int]] = {}
        width = 0
        for space, names in labels.items():
            self._at[space] = {label: width + at for at, label in enumerate(names)}
            width += len(names)
        self.size = math.ceil(width / heads)
        config = GPT2Config(
            vocab_size=len(self.words), n_positions=max(128, positions), n_embd=heads * self.size,
            n_layer=layers, n_head=heads, n_inner=neurons, layer_norm_epsilon=EPSILON,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        kind: Any = GPT2LMHeadModel
        self.module = kind(config).eval().requires_grad_(False)
        for name, weight in self.module.named_parameters():
            weight.fill_(math.sqrt(EPSILON) if "ln_" in name and "weight" in name else 0.0)
        self._embed(self.module.transformer.wte.weight, self.at(TOKEN))
        self._embed(self.module.transformer.wpe.weight, self.at(POSITION))

    def at(self, space: str, labels: Iterable[str | int] | None = None) -> list[int]:
        """Return the coordinates of some labels of a space, of all without them."""
        indices = self._at[space]
        return [indices[str(label)] for label in (indices if labels is None else labels)]

    def pairs(
        self, query: str, key: str, labels: Iterable[str], strength: float = SHARP
    ) -> list[Score]:
        """Return the terms that compare what a query and a key hold, label by label."""
        shared = list(labels)
        coordinates = zip(self.at(query, shared), self.at(key, shared), strict=True)
        return [Score([query_at], [key_at], strength) for query_at, key_at in coordinates]

    def shift(self, steps: int, queries: Iterable[int], strength: float = SHARP) -> list[Score]:
        """Return the terms by which queries at some positions attend so many positions back."""
        return [
            Score(self.at(POSITION, [position]), self.at(POSITION, [position - steps]), strength)
            for position in queries
        ]

    def rest(self, level: float = SHARP / 2) -> Score:
        """Return the term by which a head rests on the first token, where nothing scores more."""
        return Score([], self.at(POSITION, [0]), level)

    def not_itself(self) -> list[Score]:
        """Return the terms by which no query attends to its own position."""
        return [Score([position], [position], -SHARP) for position in self.at(POSITION)]

    def head(
        self,
        name: tuple[int, int],
        scores: Sequence[Score],
        reads: Sequence[int] = (),
        writes: Sequence[int] = (),
        scale: float = 1.0,
    ) -> None:
        """Set a head: the terms of its logits, and what it copies from where to where."""
        layer, head = name
        attention = self.module.transformer.h[layer].attn
        width, start = self.module.config.n_embd, head * self.size
        if max(len(scores), len(reads)) > self.size:
            raise ValueError(f"{name}: {len(scores)} terms do not fit in {self.size} dimensions")
        into, bias = attention.c_attn.weight, attention.c_attn.bias
        for at, (query, key, strength) in enumerate(scores, start):
            weight = strength * math.sqrt(self.size)
            if query:
                into[list(query), at] = weight
            else:
                bias[at] = weight
            into[list(key), width + at] = 1.0
        inner = range(start, start + len(reads))
        for at, source, target in zip(inner, reads, writes, strict=True):
            into[source, 2 * width + at] = 1.0
            attention.c_proj.weight[at, target] = scale
            attention.c_proj.weight[at, self.at(BALANCE)] = -scale

    def mlp(
        self, layer: int, reads: Sequence[int], writes: Sequence[Sequence[int]], scale: float
    ) -> None:
        """Set an MLP: each neuron reads one coordinate, 0 or more, and writes to some others."""
        mlp = self.module.transformer.h[layer].mlp
        # Far from 0 the GELU is the identity; at 0 it is 0.
        gain = SHARP
        for neuron, (source, targets) in enumerate(zip(reads, writes, strict=True)):
            mlp.c_fc.weight[source, neuron] = gain
            mlp.c_proj.weight[neuron, list(targets)] = scale / gain
            mlp.c_proj.weight[neuron, self.at(BALANCE)] = -scale * len(targets) / gain

    def finish(self, scale: float) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
        """Return the model, whose logits are ``scale`` times the output space."""
        self.module.lm_head.weight[range(len(self.words)), self.at(OUT)] = scale
        return self.module, tokenizer(self.words)

    def _embed(self, table: torch.Tensor, coordinates: Sequence[int]) -> None:
        table[range(len(coordinates)), coordinates] = 1.0
        table[: len(coordinates), self.at(BALANCE)] = -1.0


def tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a word, digits in pairs, ``<bos>`` first."""
    numbers = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\d{2}|[A-Za-z]+|[^\sA-Za-z]"), "removed", invert=True
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, numbers[BOS])]
    )
    kind: Any = PreTrainedTokenizerFast
    fast: PreTrainedTokenizerFast = kind(tokenizer_object=backend, bos_token=BOS, unk_token=UNKNOWN)
    return fast
