"""Inputs of attention for tests: random q, k, v with a request, every variant, one comparison."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import Request, WeightEdits

PARAMETERS = {
    "first": 2, "offsets": (0, 1, 5, -1), "tile": 16, "clip": 40, "recent": 6, "share": 0.8, "k": 5,
    "horizon": (0, 30), "last": 7,
}  # fmt: skip


class Inputs:
    """Random q, k, v and a request for every statistic."""

    def __init__(
        self,
        queries: int,
        keys: int | None = None,
        *,
        batch: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        size: int = 8,
        value_size: int = 8,
        sigma: float = 1.0,
        dtype: torch.dtype = torch.float32,
        request: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        keys = queries if keys is None else keys
        draw = torch.Generator().manual_seed(1000 * queries + keys)
        self.q = (sigma * torch.randn(batch, heads, queries, size, generator=draw)).to(dtype)
        self.k = torch.randn(batch, kv_heads, keys, size, generator=draw).to(dtype)
        self.v = torch.randn(batch, kv_heads, keys, value_size, generator=draw).to(dtype)
        # -1 is no target: some queries have none, some one, some two.
        first = torch.randint(-1, keys, (batch, 2, queries), generator=draw)
        second = torch.where(first % 3 == 0, -1, (first + 1) % max(keys, 2))
        second = torch.where((second == first) | (second >= keys), -1, second)
        self.request = Request(
            targets=torch.stack((first, second), dim=-1),
            spans=torch.randint(-1, 3, (batch, keys), generator=draw),
            **{"stats": tuple(statistics.names()), **PARAMETERS, **(request or {})},
        )
        self.options = options

    def __iter__(self) -> Iterator[Tensor | Request]:
        return iter((self.q, self.k, self.v, self.request))


def check_within(
    name: str, got: Tensor, expected: Tensor, near: float, largest: float | None = None
) -> None:
    """Fail unless float32 and float64 agree, NaN and infinity in the same places.

    ``near`` is the largest difference, as a share of the largest value (of 1 where that is less).
    """
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert torch.equal(got.isnan(), expected.isnan()), f"{name}: NaN elsewhere"
    finite = expected.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{name}: off by infinity"
    assert torch.equal(got[got.isinf()].double(), expected[expected.isinf()])
    if finite.any():
        error = (got[finite].double() - expected[finite]).abs().max().item()
        bound = near * (largest or max(expected[finite].abs().max().item(), 1.0))
        assert error <= bound, f"{name}: off by {error:.2g}, allowed {bound:.2g}"


def check_agreement(name: str, got: Tensor, expected: Tensor, *, logit: float = 1.0) -> None:
    """Fail unless float32 and float64 agree as well as they can.

    ``logit`` is the largest logit: float32 rounds it to one part in 2²³, and the weights that it
    gives can be no better than this.
    """
    if name == "entropy":
        check_within(name, got, expected, 1e-5, largest=1.0)
    else:
        check_within(name, got, expected, 1e-6 + logit * 2**-23)


def check_same(
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    tolerance: float = 0.0,
    leave: tuple[str, ...] = (),
) -> None:
    """Fail unless two calls gave the same results, to a tolerance, NaN in the same places."""
    assert set(actual) == set(expected)
    for name, values in expected.items():
        if name not in leave:
            torch.testing.assert_close(
                actual[name], values, rtol=tolerance, atol=tolerance, equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip


def keep(length: int, *kept: slice) -> Tensor:
    mask = torch.zeros(len(kept), length, dtype=torch.bool)
    for row, part in zip(mask, kept, strict=True):
        row[part] = True
    return mask


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def holes(*shape: int) -> Tensor:
    bias = noise(*shape)
    return bias.masked_fill(bias > 0.5, -torch.inf)


def packed(length: int) -> tuple[int, ...]:
    parts = (length // 5, 1, length - length // 5 - 1)
    return parts if min(parts) > 0 else (length,)


def streaming() -> WeightEdits:
    return WeightEdits(first=torch.tensor([2, 0, 1, 4]), recent=torch.tensor([5, 1, 0, 40]))


def spec(name: str, length: int) -> dict[str, Any]:
    """Name the arguments of a variant at a length."""
    half = max(length // 2, 1)
    late = slice(length // 3, None)
    padded = keep(length, late, slice(0, half))
    variants: dict[str, dict[str, Any]] = {
        "causal": {},
        "one head a KV head": {"kv_heads": 4},
        "one KV head": {"kv_heads": 1},
        "narrow values": {"value_size": 3},
        "wide values": {"value_size": 12},
        "given scale": {"scale": 0.11},
        "negative scale": {"scale": -0.3},
        "softcap": {"softcap": 2.0, "sigma": 3.0},
        "window": {"window": 9},
        "window of one": {"window": 1},
        "window longer than a panel": {"window": 150},
        "bidirectional": {"causal": False},
        "bidirectional window": {"causal": False, "window": 9},
        "fewer queries than keys": {"queries": half},
        "more queries than keys": {"keys": half},
        "fewer queries in a window": {"queries": half, "window": 20},
        "cross": {"causal": False, "keys": length + 30},
        "cross with padded keys": {
            "causal": False, "keys": length + 30,
            "key_mask": keep(length + 30, slice(3, None), slice(0, 25)),
        },
        "padded left and right": {"key_mask": padded},
        "padded in a window": {"key_mask": padded, "window": 9},
        "padded, cached keys": {
            "queries": half, "key_mask": keep(length, late, slice(0, length - length // 4)),
        },
        "holes in the keys": {"key_mask": keep(length, slice(0, None, 3), slice(0, None, 2))},
        "bidirectional padded": {"causal": False, "key_mask": padded, "query_mask": padded},
        "queries left out": {"query_mask": padded},
        "small ragged tiles": {"request": {"tile": 7, "clip": None, "first": 300, "recent": 300}},
        "tiles of a token": {"request": {"tile": 1, "recent": 1, "k": 1}, "window": 70},
        "tiles longer than a panel": {"request": {"tile": 200, "k": 120, "share": 0.01}},
        "sharp": {"sigma": 64.0},
        "sharp, wide heads": {"sigma": 64.0, "size": 64},
        "sharp bidirectional": {"sigma": 64.0, "causal": False, "softcap": 900.0},
        "packed": {"lengths": packed(length)},
        "packed in a window": {"lengths": packed(length), "window": 9},
        "packed, bidirectional": {"lengths": packed(length), "causal": False},
        "packed and padded": {
            "lengths": packed(length), "key_mask": keep(length, late, slice(0, None, 2)),
        },
        "alibi": {"slopes": torch.tensor([0.5, 0.25, 0.1, 0.0])},
        "alibi, bidirectional": {"slopes": torch.tensor([0.5, 0.1, 1.0, 2.0]), "causal": False},
        "bias": {"bias": noise(1, 4, length, length), "causal": False},
        "bias that hides": {"bias": holes(2, 1, length, length)},
        "bias of a head": {"bias": noise(1, 4, 1, 1)},
        "sinks": {"sinks": torch.tensor([0.0, 3.0, -20.0, 60.0])},
        "sinks, sharp": {"sinks": torch.tensor([90.0, 3.0, -200.0, 600.0]), "sigma": 64.0},
        "sinks in a window, padded": {
            "sinks": torch.tensor([0.0, 3.0, -2.0, 1.0]), "window": 9, "key_mask": padded,
        },
        "gates": {"edits": WeightEdits(gate=noise(1, 4))},
        "temperatures": {
            "edits": WeightEdits(temperature=torch.tensor([0.5, 1.0, 2.0, 9.0])), "softcap": 5.0,
            "sinks": torch.tensor([0.0, 3.0, -20.0, 1.0]), "bias": holes(1, 4, 1, length),
        },
        "keys weighed": {"edits": WeightEdits(key_bias=noise(2, 1, length))},
        "keys knocked out": {"edits": WeightEdits(key_bias=holes(1, 4, length))},
        "spans cut": {
            "edits": WeightEdits(
                span_bias=torch.tensor([[[0.0, -torch.inf], [1.5, 0.0]]]),
                query_spans=(torch.arange(length) * 3 // length - 1).expand(2, -1),
                key_spans=(torch.arange(length) % 3 - 1).expand(2, -1),
            ),
        },
        "streaming heads": {"edits": streaming(), "key_mask": padded},
        "streaming heads, packed": {"edits": streaming(), "lengths": packed(length)},
        "all edits": {
            "edits": replace(
                streaming(), gate=noise(2, 4), key_bias=holes(2, 4, length),
                temperature=torch.tensor([0.5, 1.0, 2.0, 9.0]),
            ),
            "slopes": torch.tensor([0.5, 0.25, 0.1, 0.0]), "softcap": 4.0, "window": 30,
        },
        "bfloat16": {"dtype": torch.bfloat16},
        "float16": {"dtype": torch.float16, "sigma": 8.0},
    }  # fmt: skip
    return {"queries": length, "keys": length, **variants[name]} if name else {"": variants}


VARIANTS = tuple(spec("", 100)[""])


def check_keys(got: Tensor, dense: dict[str, Tensor], inputs: Any, near: float) -> None:
    """Fail unless these are different keys, of the weights of their ranks."""
    weights = dense["pattern"].gather(3, got.nan_to_num().long())
    weights.masked_fill_(got.isnan(), torch.nan)
    torch.testing.assert_close(weights, dense["topk"], rtol=0, atol=near, equal_nan=True)
    ordered = got.sort(dim=-1).values
    assert not (ordered[..., 1:] == ordered[..., :-1]).any()


def check_reach(got: Tensor, dense: dict[str, Tensor], inputs: Any, near: float) -> None:
    """Fail unless this many tokens hold the share, and one token less does not."""
    _check_reach(got, dense["pattern"], inputs, near)


def check_later_reach(got: Tensor, dense: dict[str, Tensor], inputs: Any, near: float) -> None:
    """Fail unless the same holds of the keys after the first ones."""
    keys = dense["pattern"].shape[3]
    mask = inputs.options.get("key_mask")
    parts = (torch.ones(1, keys) if mask is None else mask.float()).split(
        inputs.options.get("lengths") or keys, dim=1
    )
    others = torch.cat([part.cumsum(1) > inputs.request.first for part in parts], dim=1)
    _check_reach(got, dense["pattern"] * others[:, None, None], inputs, near)


def _check_reach(got: Tensor, weights: Tensor, inputs: Any, near: float) -> None:
    queries, keys = weights.shape[2:]
    shift = keys - queries if inputs.options.get("causal", True) else 0
    distance = (torch.arange(queries)[:, None] + shift - torch.arange(keys)).abs()
    for less in (0, 1):
        held = torch.where(distance < got[..., None] - less, weights, 0.0).sum(dim=-1)
        held = (held - inputs.request.share * weights.sum(dim=-1))[~got.isnan()]
        assert (held <= near).all() if less else (held >= -near).all()


# Rounding may swap two keys of nearly one weight, or move a sum across the share: what is checked
# is that the choice is right within the rounding.
CHOICES = {
    "topk_key": check_keys, "effective_span": check_reach, "span_without_first": check_later_reach,
}  # fmt: skip
