"""Long texts, where no N×N reference fits, against torch's own fused attention."""

from typing import Any

import pytest
import torch
from sdpa_oracles import Stock, stock
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, attend, attend_dense

TOLD = (
    "z", "lse", "entropy", "max_weight", "first_mass", "recent_mass", "offset_mass", "span_mass",
    "value_mass", "distance", "distance_variance", "received", "received_max", "pooled_mean",
    "pooled_max", "received_later", "received_last", "learned_sink_mass",
)  # fmt: skip
"""What fused attention can tell."""
ROWS = ("topk", "topk_key", "effective_span", "distance_hist", "entropy", "distance_variance")


class Text:
    """Two query heads that share a KV head; the first is dull, the second sharp."""

    def __init__(self, length: int, stats: tuple[str, ...], size: int = 32) -> None:
        draw = torch.Generator().manual_seed(length)
        self.q = torch.randn(1, 2, length, size, generator=draw)
        self.q *= torch.tensor([0.5, 2.0])[:, None, None]
        self.k = torch.randn(1, 1, length, size, generator=draw)
        self.v = torch.randn(1, 1, length, size, generator=draw)
        self.request = Request(
            stats=stats,
            first=4,
            offsets=(0, 1, 777, -2),
            tile=-(-length // size),
            recent=300,
            horizon=(3, 150),
            last=30,
            spans=torch.randint(-1, 5, (1, length), generator=draw),
        )

    def __iter__(self) -> Any:
        return iter((self.q, self.k, self.v, self.request))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": 37},
    {"causal": False},
    {"causal": False, "window": 130},
    {"scale": 0.3},
    {"slopes": torch.tensor([0.5, 0.01]), "sinks": torch.tensor([2.0, -3.0])},
    {"slopes": torch.tensor([0.5, 0.01]), "window": 60},
    {"sinks": torch.tensor([2.0, -3.0]), "causal": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
@pytest.mark.parametrize("length", [1, 70, 1100])
def test_fused_attention_agrees_with_the_dense_matrix(length, options):
    text = Text(length, TOLD)
    told = stock(*text, AttentionSpec(**options))
    dense = attend_dense(*text, AttentionSpec(**options))
    forward = {"recent_mass", "received_later", "distance", "distance_variance"}
    assert set(TOLD) - set(told) == (set() if options.get("causal", True) else forward)
    for name, value in told.items():
        largest = float(dense[name].nan_to_num().abs().max())
        tolerance = 1e-11 * max(largest, 1.0)
        torch.testing.assert_close(
            value, dense[name], rtol=0, atol=tolerance, equal_nan=True, msg=lambda m, n=name: n + m
        )


def compare(text: Text, agree: Any, **options: Any) -> None:
    result = attend(*text, AttentionSpec(**options))
    told = stock(*text, AttentionSpec(**options))
    assert set(told) == set(text.request.stats)
    largest = float(told["lse"].max())  # no logit is above its row's normaliser
    for name, value in told.items():
        agree(name, result[name], value, logit=largest)


@pytest.mark.requirement("F1")
@pytest.mark.long
def test_16k_tokens(agree):
    compare(Text(16384, TOLD), agree)


@pytest.mark.requirement("F1")
def test_16k_tokens_with_a_window_slopes_and_sinks(agree):
    sinks, slopes = torch.tensor([1.0, 9.0]), torch.tensor([0.1, 0.001])
    compare(Text(16383, TOLD), agree, window=1000, sinks=sinks, slopes=slopes)


@pytest.mark.slow
def test_32k_tokens(agree):
    compare(Text(32768, TOLD, size=64), agree)


def last(value: Tensor) -> Tensor:
    return value[:, :, -1]


def test_single_queries_of_16k_tokens(agree):
    """A query with the keys before it is a text of its own, whose one row fits."""
    text = Text(16384, ROWS)
    result = attend(*text)
    for query in (0, 1, 4095, 9999, 16383):
        stop = query + 1
        q, k, v = text.q[:, :, query:stop], text.k[:, :, :stop], text.v[:, :, :stop]
        row = attend_dense(q, k, v, text.request)
        for name in ROWS:
            width = row[name].shape[3:]  # a shorter text has fewer distances
            got = result[name][:, :, query][(..., *map(slice, width))]
            agree(name, got, last(row[name]), logit=24.0)


def test_a_window_off_by_one_is_noticed(agree):
    text = Text(700, TOLD)
    result = attend(*text, AttentionSpec(window=100))
    told = stock(*text, AttentionSpec(window=101))
    for name in ("z", "lse", "entropy", "received", "pooled_mean", "distance"):
        with pytest.raises(AssertionError, match="off by"):
            agree(name, result[name], told[name], logit=24.0)


def test_the_normaliser_of_torch_is_its_own():
    """Its strides are transposed: read as they lie, queries and heads would change places."""
    text = Text(300, ())
    logits = text.q.double() @ text.k.double().mT / 32**0.5
    logits.masked_fill_(torch.ones(300, 300).triu(1).bool(), -torch.inf)
    lse = Stock(*text).lse
    assert lse.is_contiguous()
    torch.testing.assert_close(lse, logits.logsumexp(-1), rtol=1e-12, atol=1e-12)
