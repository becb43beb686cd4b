"""Attention whose statistics are known in closed form, without either implementation."""

import math

import pytest
import torch
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, attend


def close(got: Tensor, expected: Tensor | float, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64).expand_as(got)
    near = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(got.double(), expected, **near, equal_nan=True)


def zeros(length: int, size: int = 4) -> Tensor:
    return torch.zeros(1, 1, length, size)


@pytest.mark.requirement("A7")
def test_uniform_causal_attention():
    length, tile = 64, 16
    values = torch.arange(float(length)).view(1, 1, length, 1)
    stats = ("entropy", "lse", "max_weight", "first_mass", "offset_mass", "received", "distance")
    request = Request(stats=(*stats, "distance_variance", "pooled_mean"), offsets=(0, 3), tile=tile)
    result = attend(zeros(length), zeros(length), values, request)
    visible = torch.arange(1, length + 1, dtype=torch.float64)
    close(result["entropy"], visible.log())
    close(result["lse"], visible.log())
    close(result["max_weight"], 1 / visible)
    close(result["first_mass"], 1 / visible)
    close(result["offset_mass"][..., 0], 1 / visible)
    close(result["offset_mass"][0, 0, 3:, 1], 1 / visible[3:])
    assert result["offset_mass"][0, 0, :3, 1].isnan().all()
    close(result["distance"], (visible - 1) / 2)
    close(result["distance_variance"], (visible.square() - 1) / 12, 2e-6)
    close(result["z"][0, 0, :, 0], (visible - 1) / 2)
    harmonic = sum(1 / n for n in range(1, length + 1))
    assert harmonic / length == pytest.approx(0.0741, abs=5e-5)
    assert result["received"][0, 0, 0].item() == pytest.approx(harmonic / length, rel=1e-6)
    last = sum(1 / n for n in range(60, length + 1)) / 5
    assert result["received"][0, 0, 59].item() == pytest.approx(last, rel=1e-6)
    first_tile = sum(min(n, tile) / n for n in range(33, 49)) / tile
    assert result["pooled_mean"][0, 0, 2, 0].item() == pytest.approx(first_tile, rel=1e-6)
    own_tile = sum((n - 32) / n for n in range(33, 49)) / tile
    assert result["pooled_mean"][0, 0, 2, 2].item() == pytest.approx(own_tile, rel=1e-6)


def test_uniform_attention_in_both_directions_and_in_a_window():
    request = Request(stats=("entropy", "received", "distance"))
    both = attend(zeros(31), zeros(31), zeros(31), request, AttentionSpec(causal=False))
    close(both["entropy"], math.log(31))
    close(both["received"], 1 / 31)
    position = torch.arange(31.0)
    close(both["distance"], (position[:, None] - position).abs().mean(dim=1))
    near = attend(zeros(31), zeros(31), zeros(31), request, AttentionSpec(window=8))
    close(near["entropy"], torch.arange(1.0, 32.0).clamp_max(8).log())
    close(near["received"][0, 0, 8:24], 1 / 8)


@pytest.mark.requirement("A7")
def test_a_clipped_distance_counts_far_keys_as_the_clip():
    request = Request(stats=("distance", "distance_variance"), clip=2)
    result = attend(zeros(5), zeros(5), zeros(5), request)
    close(result["distance"][0, 0, 4], (0 + 1 + 2 + 2 + 2) / 5)
    close(result["distance_variance"][0, 0, 4], (1 + 4 + 4 + 4) / 5 - 1.4**2)


@pytest.mark.parametrize("length", [5, 130])
def test_a_previous_token_head(length):
    key = torch.eye(length)[None, None]
    query = 400.0 * key.roll(1, dims=2)
    query[0, 0, 0] = 400.0 * key[0, 0, 0]
    values = torch.randn(1, 1, length, 3, generator=torch.Generator().manual_seed(0))
    stats = ("entropy", "max_weight", "offset_mass", "distance", "distance_variance", "received")
    targets = torch.full((1, 1, length, 1), -1)
    targets[0, 0, 1:, 0] = torch.arange(length - 1)
    request = Request(stats=(*stats, "target_mass"), offsets=(0, 1), targets=targets)
    result = attend(query, key, values, request, AttentionSpec(scale=1.0))
    close(result["entropy"], 0.0)
    close(result["max_weight"], 1.0)
    close(result["offset_mass"][0, 0, 1:, 1], 1.0)
    close(result["offset_mass"][0, 0, 1:, 0], 0.0)
    close(result["distance"][0, 0, 1:], 1.0)
    close(result["distance_variance"], 0.0)
    close(result["target_mass"][0, 0, 1:, 0], 1.0)
    assert result["target_mass"][0, 0, 0, 0].isnan()
    close(result["z"][0, 0, 1:], values[0, 0, :-1])
    close(result["received"][0, 0, 1:-1], 1 / torch.arange(length - 1, 1, -1))
    close(result["received"][0, 0, -1], 0.0)


def test_two_keys_of_given_odds():
    # One key three times as likely as the other: p = 3/4, 1/4.
    key = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 2, 1)
    query = torch.ones(1, 1, 2, 1)
    request = Request(stats=("entropy", "lse", "pattern"))
    result = attend(query, key, key, request, AttentionSpec(scale=1.0))
    close(result["pattern"][0, 0], torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert result["entropy"][0, 0, 1].item() == pytest.approx(entropy, rel=1e-6)
    assert result["lse"][0, 0, 1].item() == pytest.approx(math.log(4.0), rel=1e-6)
    assert result["z"][0, 0, 1, 0].item() == pytest.approx(0.75 * math.log(3.0), rel=1e-6)


def test_a_soft_cap_bounds_the_odds():
    key = torch.tensor([1e4, -1e4]).view(1, 1, 2, 1)
    query = torch.ones(1, 1, 2, 1)
    result = attend(query, key, key, Request(stats=("max_weight",)), AttentionSpec(softcap=1.5))
    # The logits become 1.5 and -1.5: odds of e³.
    assert result["max_weight"][0, 0, 1].item() == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-6)


def test_a_sink_head_gives_everything_to_the_first_key():
    key = zeros(64)
    key[0, 0, 0, 0] = 1.0
    query = zeros(64)
    query[..., 0] = 200.0
    request = Request(stats=("received", "first_mass"))
    result = attend(query, key, key, request, AttentionSpec(scale=1.0))
    close(result["received"][0, 0, 0], 1.0)
    close(result["received"][0, 0, 1:], 0.0)
    close(result["first_mass"], 1.0)


def test_queries_without_a_key_are_empty():
    # The first two of five queries stand before the first of three keys.
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, n, 4, generator=draw) for n in (5, 3))
    request = Request(stats=("entropy", "lse", "offset_mass", "pooled_mean", "received"), tile=2)
    result = attend(q, k, k, request)
    assert torch.equal(result["z"][0, 0, :2], torch.zeros(2, 4))
    assert torch.equal(result["lse"][0, 0, :2], torch.full((2,), -torch.inf))
    assert result["entropy"][0, 0, :2].isnan().all()
    assert result["offset_mass"][0, 0, :2].isnan().all()
    assert result["pooled_mean"][0, 0, 0].isnan().all()
    assert result["entropy"][0, 0, 2].item() == 0.0
    close(result["pooled_mean"][0, 0, 1:].sum(dim=-1), 1.0)
    assert torch.equal(result["received"], attend(q[:, :, 2:], k, k, request)["received"])
