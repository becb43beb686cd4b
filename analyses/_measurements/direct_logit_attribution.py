"""Direct logit attribution: what each component writes to the answer, the norms' scales frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions.ablation import Array, encode_task
from headscope.analyses._measurements.readout import QuestionCache, Readout
from headscope.analyses._measurements.residual_writes import same
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

TOKENS = 8192
SUM = 1e-4
"""Share of the logits that their parts may miss by rounding in float32."""


@dataclass(frozen=True)
class Split:
    """The writes of all components along one direction of every prompt: parts of one sum.

    Attributes
    ----------
    heads
        (prompt, layer, head), NaN in layers without an attention map.
    rest
        What else a layer writes: its MLP and the biases (prompt, layer).
    embedding, bias
        (prompt,): of the embeddings, and of the last norm and the unembedding.
    """

    heads: Array
    rest: Array
    embedding: Array
    bias: Array

    def total(self) -> Array:
        """Sum all parts (prompt,)."""
        heads = np.nansum(self.heads, axis=(1, 2))
        return np.asarray(heads + self.rest.sum(1) + self.embedding + self.bias)

    def components(self) -> Array:
        """Sum the parts by kind: embeddings, heads, rest, biases at the end (prompt, component)."""
        heads = np.nansum(self.heads, axis=(1, 2))
        return np.stack([self.embedding, heads, self.rest.sum(1), self.bias], axis=1)

    def accumulated(self) -> Array:
        """Sum the parts up to every boundary of layers (prompt, boundary), without biases."""
        written = np.nansum(self.heads, axis=2) + self.rest
        return np.cumsum(np.concatenate([self.embedding[:, None], written], axis=1), axis=1)


@dataclass(frozen=True)
class Parts(Split):
    """The writes of all components towards the answer of every prompt, in logits.

    Attributes
    ----------
    before
        The same without the last norm, which has no biases at the end.
    logit
        What the model itself gives (prompt,), before a soft cap; all parts sum to it.
    stream
        What the residual stream gives without the last norm (prompt,); ``before`` sums to it.
    capped
        Whether the model caps its logits.
    """

    before: Split
    logit: Array
    stream: Array
    capped: bool


def attribute(model: Model, task: Task | EncodedTask, reads: Readout | None = None) -> Parts:
    """Split the logit difference of every prompt into what components write directly.

    ``Σ z_h W_O^h`` of the heads, what else each layer adds to the residual stream, and the
    embeddings, each through the last norm with its scale frozen, the unembedding and ``answer −
    wrong``; a norm between the heads and the stream is frozen too. Without wrong answers the mean
    over the vocabulary stands in their place. Where the model caps its logits, they are those
    before the cap.
    """
    encoded = encode_task(model, task)
    reads = reads or Readout(model)
    count = len(encoded.ids)
    after, before = (_empty(model, count) for _ in range(2))
    logit, stream = np.zeros(count), np.zeros(count)
    for rows in batches(encoded.ids, TOKENS):
        questions = [encoded.questions[row] for row in rows]
        flat = [
            (row_index, question) for row_index, row in enumerate(questions) for question in row
        ]
        positions = torch.tensor([(row_index, question.at) for row_index, question in flat]).T
        cache = reads.read(torch.tensor([encoded.ids[row] for row in rows]), positions)
        direction = torch.stack([_difference(reads.table, question) for _, question in flat])
        share = torch.zeros(len(rows), len(flat), dtype=torch.float64)
        for at, (row_index, _) in enumerate(flat):
            share[row_index, at] = 1 / len(questions[row_index])

        _fill(after, rows, reads, cache, reads.before_norm(direction, cache), share)
        _fill(before, rows, reads, cache, direction, share)
        fixed = direction @ reads.norm.bias
        if reads.shift is not None:
            fixed = fixed + torch.stack(
                [_difference(reads.shift, question) for _, question in flat]
            )
        after.bias[rows] = (share @ fixed).numpy()
        logits = [
            _difference(row, question)
            for row, (_, question) in zip(cache.logits, flat, strict=True)
        ]
        logit[rows] = (share @ torch.stack(logits)).numpy()
        stream[rows] = (share @ (cache.streams[-1] * direction).sum(-1)).numpy()
    same(torch.from_numpy(after.total()), torch.from_numpy(logit), "the unembedding", SUM)
    same(torch.from_numpy(before.total()), torch.from_numpy(stream), "the residual stream", SUM)
    return Parts(**vars(after), before=before, logit=logit, stream=stream, capped=reads.capped)


def _empty(model: Model, count: int) -> Split:
    return Split(
        np.full((count, model.layers, model.heads), np.nan), np.zeros((count, model.layers)),
        np.zeros(count), np.zeros(count),
    )  # fmt: skip


def _fill(
    split: Split, rows: Sequence[int], reads: Readout, cache: QuestionCache,
    towards: Float[Tensor, "question residual"], share: Float[Tensor, "row question"],
) -> None:  # fmt: skip
    """Write what components give along directions of the stream, averaged over questions."""
    for layer in range(reads.model.layers):
        change = ((cache.streams[layer + 1] - cache.streams[layer]) * towards).sum(-1)
        if layer in reads.writes:
            heads = (cache.z[layer] * reads.before_heads(towards, layer, cache)).sum(-1)
            split.heads[rows, layer] = (share @ heads).numpy()
            change = change - heads.sum(-1)
        split.rest[rows, layer] = (share @ change).numpy()
    split.embedding[rows] = (share @ (cache.streams[0] * towards).sum(-1)).numpy()


@dataclass(frozen=True)
class OpenedPrompt:
    """The last question of one prompt, opened up.

    Attributes
    ----------
    ids
        Tokens up to the question.
    after, before
        What every head writes along the answer from every token (layer, head, key), in logits
        through the last norm, and without it.
    cache
        What the pass gave at the question.
    """

    ids: Sequence[int]
    after: Array
    before: Array
    cache: QuestionCache


def of_prompt(reads: Readout, task: EncodedTask, prompt: int) -> OpenedPrompt:
    """Split what heads write for the last question of a prompt by the token that it is from."""
    question = task.questions[prompt][-1]
    ids = task.ids[prompt][: question.at + 1]
    direction = _difference(reads.table, question)[None]
    cache = reads.read_question(ids, question.at)
    after, before = (
        by_source(reads, cache, towards).numpy()
        for towards in (reads.before_norm(direction, cache), direction)
    )
    return OpenedPrompt(ids, after, before, cache)


def by_source(
    reads: Readout, cache: QuestionCache, towards: Float[Tensor, "1 residual"]
) -> Float[Tensor, "layer head key"]:
    """Split what every head writes along a direction of the stream by the token that it is from.

    ``A[at, key] · v_key W_O^h`` of one question; over keys they sum to what the head writes.
    Layers without an attention map are 0.
    """
    model = reads.model
    size = next(iter(cache.maps.values()))[0].shape[-1]
    shares = torch.zeros(model.layers, model.heads, size, dtype=torch.float64)
    for layer, (row, value) in cache.maps.items():
        along = reads.before_heads(towards, layer, cache)[0]
        value = value.repeat_interleave(len(row) // len(value), 0)
        shares[layer] = row * torch.einsum("hks,hs->hk", value, along)
        same(shares[layer].sum(-1), (cache.z[layer][0] * along).sum(-1), f"layer {layer}")
    return shares


def _difference(values: Float[Tensor, "vocab ..."], question: Any) -> Float[Tensor, ...]:
    """Average what the answers of a question have, less the wrong ones, or all words."""
    wrong = values[list(question.wrong_ids)] if question.wrong_ids else values
    right = values[list(question.answer_ids)].mean(0, dtype=torch.float64)
    return right - wrong.mean(0, dtype=torch.float64)


def direction_of(
    model: Model, answer_ids: Sequence[int], wrong_ids: Sequence[int] = ()
) -> Float[Tensor, " residual"]:
    """Return the mean unembedding of the answers, less that of the wrong ones if any."""
    module: Any = model.module
    table: Tensor = module.get_output_embeddings().weight.detach().cpu()
    right: Tensor = table[list(answer_ids)].mean(0, dtype=torch.float64)
    return right - table[list(wrong_ids)].mean(0, dtype=torch.float64) if wrong_ids else right
