"""Closed forms of the statistics that window, cut into spans, bin or rank the keys of a query."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, attend

LENGTH = 64


def even(stats: tuple[str, ...], values: Tensor | None = None, **parameters: Any) -> Any:
    """Attend evenly to every visible key: query i gives 1 / (i + 1)."""
    zeros = torch.zeros(1, 1, LENGTH, 4)
    result = attend(zeros, zeros, zeros if values is None else values, Request(stats, **parameters))
    return {name: one[0, 0].double() for name, one in result.items()}


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected.double(), rtol=1e-6, atol=1e-6, equal_nan=True)


VISIBLE = torch.arange(1, LENGTH + 1, dtype=torch.float64)


def test_even_attention_in_a_recent_window():
    close(even(("recent_mass",), recent=10)["recent_mass"], VISIBLE.clamp_max(10) / VISIBLE)
    close(even(("recent_mass",))["recent_mass"], torch.ones(LENGTH))


def test_even_attention_on_spans():
    spans = torch.full((1, LENGTH), -1)
    spans[0, 4:7], spans[0, 20] = 0, 2
    mass = even(("span_mass",), spans=spans)["span_mass"]
    close(mass[:, 0], (VISIBLE - 4).clamp(0, 3) / VISIBLE)
    assert mass[:, 1].isnan().all(), "no key is of span 1"
    close(mass[:, 2], (VISIBLE > 20) / VISIBLE)


def test_spans_that_cover_the_text_hold_everything(draw):
    inputs = draw(150)
    spans = torch.arange(150).expand(2, 150) % 4
    mass = attend(inputs.q, inputs.k, inputs.v, Request(("span_mass",), spans=spans))["span_mass"]
    present = mass.nan_to_num().sum(dim=-1)
    torch.testing.assert_close(present, torch.ones_like(present))


def test_no_spans_give_no_column():
    nowhere = torch.full((1, LENGTH), -1)
    assert even(("span_mass",), spans=nowhere)["span_mass"].shape == (LENGTH, 0)


def test_even_attention_peaks_at_the_first_query_that_sees():
    result = even(("received_max", "pooled_max"), tile=16)
    close(result["received_max"], 1 / VISIBLE)
    first = 1 / torch.tensor([1.0, 17.0, 33.0, 49.0], dtype=torch.float64)
    close(result["pooled_max"], first[:, None].expand(4, 4).tril())


def test_the_largest_link_is_found_in_every_way(draw):
    result = attend(*draw(150))
    weights = result["pattern"].nan_to_num()
    assert torch.equal(result["received_max"], weights.amax(dim=2))
    assert torch.equal(result["topk"][..., 0], result["max_weight"])
    assert torch.equal(result["pooled_max"].flatten(2).amax(2), weights.flatten(2).amax(2))
    peak = weights[..., 32:48, 16:32].amax(dim=(2, 3))
    assert torch.equal(result["pooled_max"][..., 2, 1], peak)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.77])
def test_even_attention_spans_its_share_of_the_keys(share):
    # An exact multiple would hang on the last bit of the sum.
    expected = share * VISIBLE
    keeps_logits = (expected - expected.round()).abs() > 1e-6
    result = even(("effective_span",), share=share)["effective_span"]
    close(result[keeps_logits], expected.ceil()[keeps_logits])


def test_a_head_at_a_fixed_distance():
    distance = 21
    key = torch.eye(LENGTH)[None, None]
    query = 400.0 * key.roll(distance, dims=2)
    request = Request(("effective_span", "distance_hist", "topk", "topk_key", "recent_mass"), k=3)
    result = attend(query, key, key, request, AttentionSpec(scale=1.0))
    late = {name: one[0, 0, distance:].double() for name, one in result.items()}
    close(late["effective_span"], torch.full((LENGTH - distance,), distance + 1.0))
    # 21 lies between 16 and 32: bin 5 after 0, 1, 2, 4, 8.
    close(late["distance_hist"], torch.eye(7)[5].expand(LENGTH - distance, 7))
    close(late["topk"][:, 0], torch.ones(LENGTH - distance))
    close(late["topk_key"][:, 0], torch.arange(LENGTH - distance))
    close(late["recent_mass"], torch.ones(LENGTH - distance))
    request = Request(("recent_mass",), recent=distance)
    near = attend(query, key, key, request, AttentionSpec(scale=1.0))["recent_mass"]
    close(near[0, 0, distance:].double(), torch.zeros(LENGTH - distance))


def test_even_attention_in_bins_of_distance():
    result = even(("distance_hist",))["distance_hist"]
    assert result.shape == (LENGTH, 7)
    close(result.sum(dim=-1), torch.ones(LENGTH))
    counts = torch.tensor([1, 1, 2, 4, 8, 16, 32])
    close(result[-1], counts / LENGTH)
    close(result[9], torch.tensor([1, 1, 2, 4, 2, 0, 0]) / 10)


def test_distances_count_on_either_side_without_causal_order():
    zeros = torch.zeros(1, 1, 5, 4)
    request = Request(("distance_hist", "effective_span"), share=0.5)
    result = attend(zeros, zeros, zeros, request, AttentionSpec(causal=False))
    # The middle of 5 keys: itself, 2 at distance 1, 2 at distance 2.
    close(result["distance_hist"][0, 0, 2].double(), torch.tensor([1, 2, 2, 0]) / 5)
    close(result["effective_span"][0, 0].double(), torch.tensor([3, 2, 2, 2, 3]))


def test_bins_are_labelled_by_their_smallest_distance():
    labels = statistics.load("distance_hist").labels["bin"]
    result = [list(labels(Request(()), length)) for length in (1, 2, 3, 5, 1024, 1025)]
    assert result[:4] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 4]]
    assert (result[4][-1], result[5][-1]) == (512, 1024)


def test_ranks_beyond_the_visible_keys_are_missing():
    result = even(("topk", "topk_key"), k=70)
    places = torch.arange(70) < VISIBLE[:, None]
    expected = (1 / VISIBLE)[:, None].expand(LENGTH, 70).masked_fill(~places, torch.nan)
    close(result["topk"], expected)
    keys = torch.arange(70.0).expand(LENGTH, 70).masked_fill(~places, torch.nan)
    close(result["topk_key"].sort(dim=-1).values, keys)


@pytest.mark.parametrize("k", [1, 8, 31])
def test_ranks_equal_torch(k, draw):
    inputs = draw(600, batch=1, sigma=2.0)
    result = attend(inputs.q, inputs.k, inputs.v, Request(("topk", "topk_key", "pattern"), k=k))
    values, keys = result["pattern"].topk(k, dim=-1)
    full = slice(k, None)
    torch.testing.assert_close(result["topk"][:, :, full], values[:, :, full], rtol=0, atol=0)
    assert (result["topk_key"][:, :, full] != keys[:, :, full]).float().mean() < 1e-3


def test_values_of_one_length_have_that_mass():
    angle = torch.arange(LENGTH) * 0.3
    values = 3.0 * torch.stack((angle.cos(), angle.sin()), dim=-1)[None, None]
    result = even(("value_mass",), values)
    close(result["value_mass"], torch.full((LENGTH,), 3.0))
    assert result["z"][-1].norm() < 1.0, "the values point everywhere"
    ramp = torch.arange(float(LENGTH)).view(1, 1, LENGTH, 1)
    close(even(("value_mass",), -ramp)["value_mass"], (VISIBLE - 1) / 2)


def test_value_mass_bounds_the_norm_of_z(draw):
    inputs = draw(150)
    result = attend(*inputs)
    assert (result["z"].norm(dim=-1) <= result["value_mass"] + 1e-6).all()
    tripled = attend(inputs.q, inputs.k, 3.0 * inputs.v, Request(("value_mass",)))["value_mass"]
    torch.testing.assert_close(tripled, 3.0 * result["value_mass"])


def test_uniform_entropy_is_the_log_of_the_full_span():
    result = even(("effective_span", "entropy"), share=1 - 1e-4)
    close(result["effective_span"].log(), result["entropy"])
    assert result["entropy"][-1].item() == pytest.approx(math.log(LENGTH), abs=1e-6)


def test_a_span_of_padding_is_missing(draw):
    inputs = draw(40, batch=1)
    real = torch.ones(1, 40, dtype=torch.bool)
    real[0, :10] = False
    request = Request(("span_mass",), spans=(torch.arange(40) >= 10).long()[None])
    mass = attend(inputs.q, inputs.k, inputs.v, request, AttentionSpec(key_mask=real))["span_mass"]
    assert mass[..., 0].isnan().all()
    torch.testing.assert_close(mass[:, :, 10:, 1], torch.ones(1, 4, 30))
