"""Padding on either side, whatever it holds, and the memory layout leave no trace."""

from typing import Any

import pytest
import torch
from attention_inputs import check_same
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, attend

LENGTHS = (70, 41, 1)
PARAMETERS = {"first": 2, "offsets": (0, 1, 5, -1), "recent": 3, "tile": 10}


def single(inputs: Any, row: int, length: int, **options: Any) -> dict[str, Tensor]:
    """Attend to one text alone."""
    targets, spans = targets_of(inputs, row, length)[None], inputs.request.spans[[row], :length]
    request = Request(inputs.request.stats, targets=targets, spans=spans, **PARAMETERS)
    tensors = (t[row : row + 1, :, :length] for t in (inputs.q, inputs.k, inputs.v))
    return attend(*tensors, request, AttentionSpec(**options))


def targets_of(inputs: Any, row: int, length: int) -> Tensor:
    """Choose one target a query inside a text of this length."""
    expected = inputs.request.targets[row, :, :length, :1]
    return torch.where(expected < length, expected, -1)


def place(texts: list[Tensor], spans: list[slice], poison: float) -> Tensor:
    """Put texts of several lengths into one batch with poison around them."""
    heads, _, size = texts[0].shape
    batch = torch.full((len(texts), heads, 70, size), poison)
    for row, text, span in zip(batch, texts, spans, strict=True):
        row[:, span] = text
    return batch


@pytest.mark.requirement("F6")
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options", [{}, {"window": 12}, {"causal": False}, {"softcap": 3.0}], ids=str
)
def test_padded_texts_equal_single_ones(options, side, poison, draw):
    inputs = draw(70, batch=3)
    mask = torch.zeros(3, 70, dtype=torch.bool)
    targets = torch.full((3, 2, 70, 1), -1)
    text_spans = torch.full((3, 70), 1)
    spans = []
    for row, length in enumerate(LENGTHS):
        start = 70 - length if side == "left" else 0
        spans.append(slice(start, start + length))
        mask[row, spans[row]] = True
        expected = targets_of(inputs, row, length)
        text_spans[row, spans[row]] = inputs.request.spans[row, :length]
        targets[row, :, spans[row]] = torch.where(expected < 0, -1, expected + start)
    request = Request(inputs.request.stats, targets=targets, spans=text_spans, **PARAMETERS)
    tensors = []
    for tensor in (inputs.q, inputs.k, inputs.v):
        texts = [text[:, :length] for text, length in zip(tensor, LENGTHS, strict=True)]
        tensors.append(place(texts, spans, poison))
    padded = attend(*tensors, request, AttentionSpec(key_mask=mask, query_mask=mask, **options))
    for row, length in enumerate(LENGTHS):
        alone = single(inputs, row, length, **options)
        for name in statistics.names():
            if name.startswith("pooled") and side == "left" and length % 10:
                continue  # the tiles of a text shifted by 29 or 69 tokens hold other tokens
            dims = statistics.load(name).dims
            # A short text has fewer tiles, bins and spans than the batch.
            sizes = alone[name].shape[2:]
            index = [
                spans[row] if dim in ("query", "key") else slice(0, size)
                for dim, size in zip(dims, sizes, strict=True)
            ]
            shift = spans[row].start if name == "topk_key" else 0
            result = padded[name][row][(slice(None), *index)] - shift
            check_same({name: result}, {name: alone[name][0]}, 2e-6)
    assert torch.equal(padded["z"][~mask[:, None].expand(3, 4, 70)], torch.zeros(4 * 98, 8))
    assert padded["entropy"][~mask[:, None].expand(3, 4, 70)].isnan().all()
    assert padded["received"][~mask[:, None].expand(3, 4, 70)].isnan().all()


def test_causal_attention_takes_queries_of_padded_keys_for_padding(draw):
    inputs = draw(50, batch=2)
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, :13] = False
    mask[1, 30:] = False
    implied = attend(*inputs, AttentionSpec(key_mask=mask))
    check_same(implied, attend(*inputs, AttentionSpec(key_mask=mask, query_mask=mask)))


def test_memory_layout_does_not_matter(draw):
    inputs = draw(130)
    expected = attend(*inputs)
    token_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (inputs.q, inputs.k)]
    spread = torch.full((2, 2, 260, 16), torch.nan)
    spread[:, :, ::2, ::2] = inputs.v
    check_same(attend(*token_first, spread[:, :, ::2, ::2], inputs.request), expected, 1e-6)


def test_inputs_are_left_alone(draw):
    inputs = draw(130)
    before = [t.clone() for t in (inputs.q, inputs.k, inputs.v)]
    mask = torch.ones(2, 130, dtype=torch.bool)
    mask[0, 100:] = False
    attend(*inputs, AttentionSpec(key_mask=mask, softcap=2.0))
    for tensor, copy in zip((inputs.q, inputs.k, inputs.v), before, strict=True):
        assert torch.equal(tensor, copy)


def test_results_are_the_same_twice(draw):
    inputs = draw(257)
    check_same(attend(*inputs), attend(*inputs))
