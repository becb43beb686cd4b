"""Padding on either side, whatever it holds, and the memory layout leave no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention import attend
from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.request import Request

LENGTHS = (70, 41, 1)


def single(inputs: Any, row: int, length: int, **options: Any) -> dict[str, Tensor]:
    """Attend to one text alone."""
    request = Request(
        stats=inputs.request.stats,
        first=2,
        offsets=inputs.request.offsets,
        targets=targets_of(inputs, row, length)[None],
        spans=inputs.request.spans[row : row + 1, :length],
        recent=3,
        tile=10,
    )
    tensors = (t[row : row + 1, :, :length] for t in (inputs.q, inputs.k, inputs.v))
    return attend(*tensors, request, AttentionSpec(**options))


def targets_of(inputs: Any, row: int, length: int) -> Tensor:
    """Choose one target a query inside a text of this length."""
    wanted = inputs.request.targets[row, :, :length, :1]
    return torch.where(wanted < length, wanted, -1)


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
def test_padded_texts_equal_single_ones(
    options: dict[str, Any], side: str, poison: float, draw: Any
) -> None:
    inputs = draw(70, batch=3)
    mask = torch.zeros(3, 70, dtype=torch.bool)
    targets = torch.full((3, 2, 70, 1), -1)
    text_spans = torch.full((3, 70), 1)
    spans = []
    for row, length in enumerate(LENGTHS):
        start = 70 - length if side == "left" else 0
        spans.append(slice(start, start + length))
        mask[row, spans[row]] = True
        wanted = targets_of(inputs, row, length)
        text_spans[row, spans[row]] = inputs.request.spans[row, :length]
        targets[row, :, spans[row]] = torch.where(wanted < 0, -1, wanted + start)
    request = Request(
        stats=inputs.request.stats,
        first=2,
        offsets=inputs.request.offsets,
        targets=targets,
        spans=text_spans,
        recent=3,
        tile=10,
    )
    tensors = [
        place(
            [text[:, :length] for text, length in zip(tensor, LENGTHS, strict=True)], spans, poison
        )
        for tensor in (inputs.q, inputs.k, inputs.v)
    ]
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
            torch.testing.assert_close(
                padded[name][row][(slice(None), *index)] - shift,
                alone[name][0],
                rtol=2e-6,
                atol=2e-6,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )
    assert torch.equal(padded["z"][~mask[:, None].expand(3, 4, 70)], torch.zeros(4 * 98, 8))
    assert padded["entropy"][~mask[:, None].expand(3, 4, 70)].isnan().all()
    assert padded["received"][~mask[:, None].expand(3, 4, 70)].isnan().all()


def test_causal_attention_takes_queries_of_padded_keys_for_padding(draw: Any) -> None:
    inputs = draw(50, batch=2)
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, :13] = False
    mask[1, 30:] = False
    implied = attend(*inputs, AttentionSpec(key_mask=mask))
    stated = attend(*inputs, AttentionSpec(key_mask=mask, query_mask=mask))
    for name in statistics.names():
        assert torch.equal(implied[name].nan_to_num(), stated[name].nan_to_num())


def test_memory_layout_does_not_matter(draw: Any) -> None:
    inputs = draw(130)
    expected = attend(*inputs)
    token_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (inputs.q, inputs.k)]
    spread = torch.full((2, 2, 260, 16), torch.nan)
    spread[:, :, ::2, ::2] = inputs.v
    result = attend(*token_first, spread[:, :, ::2, ::2], inputs.request)
    for name in statistics.names():
        torch.testing.assert_close(
            result[name], expected[name], rtol=1e-6, atol=1e-6, equal_nan=True
        )


def test_inputs_are_left_alone(draw: Any) -> None:
    inputs = draw(130)
    before = [t.clone() for t in (inputs.q, inputs.k, inputs.v)]
    mask = torch.ones(2, 130, dtype=torch.bool)
    mask[0, 100:] = False
    attend(*inputs, AttentionSpec(key_mask=mask, softcap=2.0))
    for tensor, copy in zip((inputs.q, inputs.k, inputs.v), before, strict=True):
        assert torch.equal(tensor, copy)


def test_results_are_the_same_twice(draw: Any) -> None:
    inputs = draw(257)
    once, twice = attend(*inputs), attend(*inputs)
    for name in statistics.names():
        assert torch.equal(once[name].nan_to_num(), twice[name].nan_to_num())
