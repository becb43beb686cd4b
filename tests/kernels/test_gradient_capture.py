"""Attention times gradient: every statistic against the whole matrix in float64."""

from typing import Any

import pytest
import torch
from attention_inputs import check_same
from refusals import check_refusal
from torch import Tensor

from headscope.kernels.api import (
    AttentionSpec,
    Request,
    WeightEdits,
    attend,
    attend_dense,
    attend_differentiable,
    capture_gradient,
)
from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.gradients.attributions import STATISTICS

TOKENS = 41
REQUEST = Request(stats=tuple(STATISTICS), tile=16, k=5)


def left_padded() -> Tensor:
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[0, :19] = False
    return mask


CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"causal": False},
    "window": {"window": 6},
    "cached keys": {"queries": 7},
    "more queries than keys": {"keys": 9},
    "one KV head": {"kv_heads": 1},
    "wide values": {"value_size": 12},
    "soft cap": {"softcap": 1.5, "sigma": 3.0},
    "sigmoid": {"sigmoid": True},
    "padded": {"key_mask": left_padded()},
    "packed": {"lengths": (20, 1, 20)},
    "sinks": {"sinks": torch.tensor([1.0, -1.0, 0.5, 0.0])},
    "gates": {"edits": WeightEdits(gate=torch.tensor([[1.0, 0.1, -2.0, 0.5]]))},
    "knocked out": {
        "edits": WeightEdits(
            key_bias=torch.where(torch.arange(TOKENS) % 3 == 0, -torch.inf, 0.0)[None, None]
        )
    },
    "bfloat16": {"dtype": torch.bfloat16},
}  # fmt: skip


def gradient_of(z: Tensor) -> Tensor:
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(5))


def whole_matrix(inputs: Any, spec: AttentionSpec, dz: Tensor) -> DenseAttention:
    """Multiply the oracle's pattern by the gradient of every weight."""
    pattern = Request(stats=("pattern",))
    weights = attend_dense(inputs.q, inputs.k, inputs.v, pattern, spec)["pattern"]
    (batch, heads, queries, keys), shared = weights.shape, inputs.q.shape[1] // inputs.k.shape[1]
    edits = WeightEdits() if spec.edits is None else spec.edits
    gate = torch.ones(1, 1) if edits.gate is None else edits.gate
    by_value = (dz * gate[:, :, None, None]).double()
    values = inputs.v.double().repeat_interleave(shared, dim=1)
    attributions = weights.nan_to_num() * torch.einsum("bhqd,bhkd->bhqk", by_value, values)
    real = torch.ones(batch, keys).bool() if spec.key_mask is None else spec.key_mask
    # What no edit hides, the oracle gives a weight above 0, at logits as small as these.
    intact = AttentionSpec(**{**vars(spec), "edits": None})
    visible = attend_dense(inputs.q, inputs.k, inputs.v, pattern, intact)["pattern"] > 0
    return DenseAttention(
        torch.where(weights > 0, 0.0, -torch.inf), attributions, values,
        torch.full((1, heads, 1, 1), -torch.inf), visible[:, :1], torch.zeros(keys).long(), real,
        torch.arange(queries), REQUEST,
    )  # fmt: skip


@pytest.mark.parametrize("rows", [128, 5])
@pytest.mark.parametrize("case", CASES)
def test_statistics_agree_with_the_whole_matrix(case, rows, draw, monkeypatch):
    monkeypatch.setattr("headscope.kernels.panels.plan.ROWS", rows)
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", 64 * rows)
    given = dict(CASES[case])
    inputs = draw(given.pop("queries", TOKENS), given.pop("keys", TOKENS), **given)
    spec = AttentionSpec(**inputs.options)
    z = attend(*inputs, spec)["z"] if "sigmoid" not in given else None
    dz = gradient_of(torch.empty(*inputs.q.shape[:3], inputs.v.shape[3]))
    got = capture_gradient(inputs.q, inputs.k, inputs.v, dz, REQUEST, spec)
    whole = whole_matrix(inputs, spec, dz)
    assert list(got) == list(STATISTICS)
    seen = whole.attendable.any(dim=-1)
    for name, statistic in STATISTICS.items():
        expected = statistic.dense(whole)
        if statistic.by_query:
            rows_seen = seen.view(*seen.shape, *[1] * (expected.ndim - 3))
            expected = torch.where(rows_seen, expected, torch.nan)
        near = {"rtol": 2e-6, "atol": 5e-6, "equal_nan": True}
        torch.testing.assert_close(got[name].double(), expected, **near, msg=name)
    if z is not None:
        identity = torch.where(seen, (dz * z).sum(dim=-1), torch.nan).float()
        near = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
        torch.testing.assert_close(got["attribution"], identity, **near)


def test_a_long_text_keeps_the_identity_and_the_columns_of_fused_attention():
    draw = torch.Generator().manual_seed(3)
    q, k, v, dz = (torch.randn(1, 1, 8192, 16, generator=draw) for _ in range(4))
    got = capture_gradient(q, k, v, dz, Request(stats=tuple(STATISTICS), tile=512, k=2))
    z = attend(q, k, v, Request(stats=()))["z"]
    torch.testing.assert_close(got["attribution"], (z * dz).sum(-1), rtol=1e-5, atol=1e-5)
    # v_j · ∂loss/∂v_j is the same sum of a column.
    v.requires_grad_()
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    (dv,) = torch.autograd.grad(fused, v, dz)
    columns = (v * dv).sum(-1).detach()
    torch.testing.assert_close(got["attribution_received"], columns, rtol=1e-4, atol=1e-4)
    tiles = got["attribution_pooled"]
    by_query, by_key = (one.view(1, 1, 16, 512).sum(-1) for one in (got["attribution"], columns))
    torch.testing.assert_close(tiles.sum(dim=-1), by_query, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tiles.sum(dim=-2), by_key, rtol=1e-3, atol=1e-3)


def test_the_largest_are_weights_times_their_gradient(draw):
    inputs = draw(9, batch=1, heads=1, kv_heads=1)
    dz = gradient_of(torch.empty(1, 1, 9, 8))
    request = Request(stats=("attribution_topk", "attribution_topk_key"), k=9)
    got = capture_gradient(inputs.q, inputs.k, inputs.v, dz, request)
    weights = attend(inputs.q, inputs.k, inputs.v, Request(stats=("pattern",)))["pattern"]
    weights.requires_grad_()
    (slope,) = torch.autograd.grad(((weights @ inputs.v) * dz).sum(), weights)
    keys = got["attribution_topk_key"]
    expected = (weights * slope).gather(3, keys.nan_to_num().long())
    shown = keys.isfinite()
    torch.testing.assert_close(got["attribution_topk"][shown], expected[shown].detach())
    sizes = got["attribution_topk"].abs().nan_to_num(nan=-1.0)
    assert (sizes.diff(dim=-1) <= 0).all()


def test_padding_is_not_read(draw):
    inputs, mask = draw(TOKENS), left_padded()
    dz = gradient_of(torch.empty(2, 4, TOKENS, 8))
    given = (inputs.q, inputs.k, inputs.v, dz)
    clean = capture_gradient(*given, REQUEST, AttentionSpec(key_mask=mask))
    for tensor in given:
        tensor[(~mask)[:, None].expand(tensor.shape[:3])] = torch.nan
    check_same(capture_gradient(*given, REQUEST, AttentionSpec(key_mask=mask)), clean)
    for one in clean.values():
        assert one.isnan().any()
        assert one.isfinite().any()


def test_it_takes_the_gradient_that_a_loss_left_in_z(draw):
    inputs = draw(9)
    q, k, v = (tensor.requires_grad_() for tensor in (inputs.q, inputs.k, inputs.v))
    edits = WeightEdits(gate=torch.ones(1, 4, requires_grad=True))
    spec = AttentionSpec(softcap=3.0, edits=edits)
    z = attend_differentiable(q, k, v, spec=spec)["z"]
    dz, by_gate = torch.autograd.grad(z.square().sum(), (z, edits.gate))
    sums = capture_gradient(q, k, v, dz, Request(stats=("attribution",)), spec)["attribution"]
    assert not sums.requires_grad
    # At a gate of 1 the gate's gradient is the sum of all attributions of its head.
    torch.testing.assert_close(sums.sum(dim=(0, 2))[None], by_gate, rtol=1e-5, atol=1e-5)


@pytest.mark.unchecked_signatures
def test_what_does_not_fit_is_refused(draw):
    inputs = draw(9)
    dz = torch.zeros(2, 4, 9, 8)
    qkv = inputs.q, inputs.k, inputs.v
    check_refusal("dz", capture_gradient, *qkv, dz[..., :7], REQUEST)
    check_refusal("stats", capture_gradient, *qkv, dz, Request(stats=("entropy",)))
