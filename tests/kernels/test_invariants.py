"""Relations that hold whatever the attention is, over random shapes and masks."""

import pytest
import torch
from attention_inputs import check_same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, attend


def visible_mask(
    queries: int, keys: int, causal: bool, window: int | None, key_mask: Tensor | None
) -> Tensor:
    """Build the mask from the definition, for the counts below."""
    position = torch.arange(queries)[:, None] + (keys - queries if causal else 0)
    back = position - torch.arange(keys)
    visible = back >= 0 if causal else torch.ones(queries, keys, dtype=torch.bool)
    if window is not None:
        visible &= back.abs() < window
    return visible if key_mask is None else visible & key_mask


shapes = st.fixed_dictionaries(
    {
        "queries": st.integers(1, 150),
        "extra": st.integers(-40, 60),
        "causal": st.booleans(),
        "window": st.none() | st.integers(1, 100),
        "kv_heads": st.sampled_from((1, 2, 4)),
        "tile": st.integers(1, 170),
        "sigma": st.sampled_from((0.0, 1.0, 10.0)),
        "masked": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=shapes)
def test_bounds_and_sums(shape, draw):
    queries, causal, window = shape["queries"], shape["causal"], shape["window"]
    keys = max(queries + shape["extra"], 1)
    mask = torch.ones(1, keys, dtype=torch.bool)
    if shape["masked"]:
        mask[0, ::3] = False
    real = torch.ones(1, queries, dtype=torch.bool)
    given = {"kv_heads": shape["kv_heads"], "sigma": shape["sigma"]}
    inputs = draw(queries, keys, batch=1, request={"tile": shape["tile"]}, **given)
    spec = AttentionSpec(causal=causal, window=window, key_mask=mask, query_mask=real)
    result = attend(*inputs, spec)
    visible = visible_mask(queries, keys, causal, window, mask)
    seen = visible.sum(dim=1)
    valid_queries = seen > 0
    query_counts = visible.sum(dim=0)

    assert torch.equal(result["entropy"][0, 0].isnan(), ~valid_queries)
    entropy = result["entropy"][0, :, valid_queries]
    assert (entropy >= 0).all()
    assert (entropy <= seen[valid_queries].log() + 1e-5).all()
    assert (result["max_weight"][0, :, valid_queries] >= 1 / seen[valid_queries] - 1e-6).all()
    weights = result["pattern"][0]
    assert (weights[:, ~visible].nan_to_num() == 0).all()
    sums = weights[:, valid_queries].sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    total = (result["received"][0].nan_to_num() * query_counts).sum(dim=-1)
    expected = torch.full((4,), float(valid_queries.sum()))
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(result["received"][0, 0].isnan(), query_counts == 0)
    rows = result["pooled_mean"][0].sum(dim=-1)
    torch.testing.assert_close(rows[~rows.isnan()], torch.ones(int((~rows.isnan()).sum())))
    scores = (inputs.q[0] * 8**-0.5) @ inputs.k[0].repeat_interleave(4 // shape["kv_heads"], 0).mT
    recomputed = (scores - result["lse"][0, ..., None]).exp()
    torch.testing.assert_close(recomputed[:, visible], weights[:, visible], rtol=1e-4, atol=2e-5)


def test_self_offset_is_the_diagonal_and_targets_are_the_pattern(draw):
    inputs = draw(200, request={"offsets": (0, 7)})
    result = attend(*inputs)
    weights = result["pattern"]
    assert torch.equal(result["offset_mass"][..., 0], weights.diagonal(dim1=-2, dim2=-1))
    assert torch.equal(result["offset_mass"][..., 7:, 1], weights.diagonal(-7, -2, -1))
    targets = torch.arange(200).roll(3).view(1, 1, 200, 1).expand(2, 1, 200, 1)
    request = Request(stats=("target_mass",), targets=targets)
    gathered = attend(inputs.q, inputs.k, inputs.v, request)["target_mass"][..., 0]
    expected = weights.gather(3, targets.expand(2, 4, 200, 1))[..., 0]
    assert torch.equal(gathered, expected)


def test_a_constant_key_shifts_only_the_normaliser(draw):
    inputs = draw(100)
    before = attend(*inputs)
    shift = torch.full((8,), 0.5)
    after = attend(inputs.q, inputs.k + shift, inputs.v, inputs.request)
    before["lse"] += (inputs.q * 8**-0.5) @ shift
    check_same(after, before, 2e-5)


def test_order_of_keys_does_not_matter_without_causal_order(draw):
    inputs = draw(90, 120, causal=False)
    shuffle = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    request = Request(stats=("entropy", "lse", "max_weight", "received"))
    spec = AttentionSpec(causal=False)
    before = attend(inputs.q, inputs.k, inputs.v, request, spec)
    after = attend(inputs.q, inputs.k[:, :, shuffle], inputs.v[:, :, shuffle], request, spec)
    torch.testing.assert_close(after["received"], before["received"][..., shuffle])
    for name in ("z", "entropy", "lse", "max_weight"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=2e-6)


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_kv_heads_equal_repeated_ones(kv_heads, draw):
    inputs = draw(150, kv_heads=kv_heads)
    repeated = [t.repeat_interleave(4 // kv_heads, dim=1) for t in (inputs.k, inputs.v)]
    check_same(attend(*inputs), attend(inputs.q, *repeated, inputs.request), 1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 20])
def test_z_equals_torch(causal, window, draw):
    for queries, keys in ((100, 100), (60, 130)):
        inputs = draw(queries, keys, value_size=12)
        mask = visible_mask(queries, keys, causal, window, None)
        qkv, sdpa = (inputs.q, inputs.k, inputs.v), torch.nn.functional.scaled_dot_product_attention
        expected = sdpa(*qkv, attn_mask=mask, enable_gqa=True)
        expected = expected.masked_fill(~mask.any(dim=1)[:, None], 0.0)
        z = attend(*inputs, AttentionSpec(causal=causal, window=window))["z"]
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=2e-6)
