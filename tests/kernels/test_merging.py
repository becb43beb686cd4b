"""Each statistic merges from parts as it declares: split and merged equals one pass."""

import pytest
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, attend
from headscope.kernels.statistic import MERGES

Results = dict[str, Tensor]


def merge(name: str, parts: list[Results], whole: Results) -> Tensor:
    """Combine key splits by the declared rule, as its sentence in ``MERGES`` says."""
    rule = statistics.load(name).merge
    values = torch.stack([part[name] for part in parts])
    lse = torch.stack([part["lse"] for part in parts])
    if rule == "logsumexp":
        return torch.logsumexp(values, dim=0)
    weight = (lse - whole["lse"]).exp()
    if rule == "entropy":
        return torch.nansum(weight * values - torch.xlogy(weight, weight), dim=0)
    if rule == "maximum":
        return (weight * values).nan_to_num().amax(dim=0)
    if rule == "variance":
        mean = torch.stack([part["distance"] for part in parts])
        spread = values + (mean - whole["distance"]).square()
        return torch.nansum(weight * spread, dim=0)
    if rule == "top":
        weighed = weight[..., None] * torch.stack([part["topk"] for part in parts])
        best = [weighed.nan_to_num(-1.0)]
        best += [torch.stack([part["topk_key"] for part in parts])]
        ordered, keys = (torch.cat(tuple(one), dim=-1) for one in best)
        ordered, place = ordered.topk(whole[name].shape[-1], dim=-1)
        merged = ordered if name == "topk" else keys.gather(-1, place)
        return merged.masked_fill(ordered < 0, torch.nan)
    assert rule in ("average", "join")
    return torch.nansum(weight.view(*weight.shape, *[1] * (values.ndim - 4)) * values, dim=0)


# A mask that hides the first key makes another key the first, so first_mass cannot be cut by masks;
# column statistics need the final normaliser before they add up, and some need the whole row.
UNSPLIT = ("sum", "largest", "row", "end")
SPLIT = [
    name
    for name in statistics.names()
    if statistics.load(name).merge not in UNSPLIT and name != "first_mass"
]


@pytest.mark.requirement("F3")
@pytest.mark.parametrize("name", SPLIT)
def test_key_splits_merge(name, draw):
    length = 140
    inputs = draw(length, sigma=2.0)
    real = torch.ones(2, length, dtype=torch.bool)
    near = torch.arange(length).expand(2, length) % 5 < 2
    whole = attend(*inputs)
    specs = [AttentionSpec(key_mask=mask, query_mask=real) for mask in (near, ~near)]
    merged = merge(name, [attend(*inputs, spec) for spec in specs], whole)
    # No part says more than "no such key" where the whole says so.
    expected = whole[name].nan_to_num() if name in ("offset_mass", "target_mass") else whole[name]
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.requirement("F3")
@pytest.mark.parametrize("name", statistics.names())
def test_query_splits_merge(name, draw):
    length, cut = 140, 64
    inputs = draw(length, request={"offsets": (0,)})
    whole = attend(*inputs)
    early = torch.arange(length).expand(2, length) < cut
    parts = [attend(*inputs, AttentionSpec(query_mask=mask)) for mask in (early, ~early)]
    rule = statistics.load(name).merge
    assert rule in MERGES
    if rule == "largest":
        assert torch.equal(torch.fmax(*(part[name] for part in parts)), whole[name])
        return
    if rule == "end":
        torch.testing.assert_close(parts[1][name], whole[name], equal_nan=True)
        return
    if name == "column_norm":
        merged = sum(part[name].nan_to_num() for part in parts)
        torch.testing.assert_close(merged, whole[name], rtol=1e-5, atol=1e-6)
        return
    if rule != "sum":
        first, second = (part[name] for part in parts)
        joined = torch.cat((first[:, :, :cut], second[:, :, cut:]), dim=2)
        assert torch.equal(joined.nan_to_num(), whole[name].nan_to_num())
        return
    # Means over queries: weight each part by the number of its queries.
    key = torch.arange(length)
    if name in ("received", "received_share"):
        counts = [(cut - key).clamp_min(0), length - key.clamp_min(cut)]
    elif name == "received_later":
        after = torch.arange(length)[:, None] - key
        nearest, farthest = inputs.request.horizon
        inside = (after >= nearest) & (after <= farthest)
        counts = [inside[:cut].sum(dim=0), inside[cut:].sum(dim=0)]
    else:
        tile = torch.arange(9)
        counts = [(tile < 4).float()[:, None], (tile >= 4).float()[:, None]]
    total = sum(part[name].nan_to_num() * count for part, count in zip(parts, counts, strict=True))
    merged = total / sum(counts)
    torch.testing.assert_close(merged, whole[name], rtol=1e-5, atol=1e-6)
