"""Attention inputs for the kernel tests: one drawing function, one comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.request import Request


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="session")
def draw() -> type[Inputs]:
    return Inputs


def check_agreement(name: str, got: Tensor, expected: Tensor, *, logit: float = 1.0) -> None:
    """Fail unless float32 and float64 agree, NaN and infinity in the same places.

    ``logit`` is the largest logit: float32 rounds it to one part in 2²³, and the weights that it
    gives can be no better than this.
    """
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert torch.equal(got.isnan(), expected.isnan()), f"{name}: NaN elsewhere"
    finite = expected.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{name}: infinite elsewhere"
    assert torch.equal(got[got.isinf()].double(), expected[expected.isinf()])
    if finite.any():
        error = (got[finite].double() - expected[finite]).abs().max().item()
        largest = max(expected[finite].abs().max().item(), 1.0)
        relative = 1e-6 + logit * 2**-24
        bound = 1e-5 if name == "entropy" else relative * largest
        assert error <= bound, f"{name}: off by {error:.2g}, allowed {bound:.2g}"


@pytest.fixture(scope="session")
def agree() -> Any:
    return check_agreement
