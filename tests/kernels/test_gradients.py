"""Attention for gradient runs: the same z, and gradients that finite differences confirm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headscope.kernels.attention import attend
from headscope.kernels.differentiable import attend_differentiable
from headscope.kernels.refusal import Refused
from headscope.kernels.variant import Variant


def left_padded(length: int) -> torch.Tensor:
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, :4] = False
    return mask


CASES: dict[str, dict[str, Any]] = {
    "causal": {"queries": 9},
    "bidirectional": {"queries": 9, "causal": False},
    "window": {"queries": 9, "window": 3},
    "cached keys": {"queries": 5, "keys": 9},
    "more queries than keys": {"queries": 9, "keys": 5},
    "padded": {"queries": 9, "key_mask": left_padded(9)},
    "wide values": {"queries": 9, "value_size": 12},
    "one KV head": {"queries": 9, "kv_heads": 1, "scale": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_z_is_that_of_capture(case: str, draw: Any) -> None:
    inputs = draw(**CASES[case])
    z = attend_differentiable(inputs.q, inputs.k, inputs.v, Variant(**inputs.options))
    torch.testing.assert_close(
        z, attend(*inputs, Variant(**inputs.options))["z"], rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case: str, draw: Any) -> None:
    inputs = draw(**CASES[case], size=3)
    tensors = tuple(t.double().requires_grad_() for t in (inputs.q, inputs.k, inputs.v))
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend_differentiable(q, k, v, Variant(**inputs.options)),
        tensors,
        fast_mode=True,
    )


def test_padding_poisons_no_gradient(draw: Any) -> None:
    inputs = draw(9)
    mask = left_padded(9)
    hidden = ~mask[:, None, :, None]
    tensors = [t.masked_fill(hidden, torch.nan) for t in (inputs.q, inputs.k, inputs.v)]
    for tensor in tensors:
        tensor.requires_grad_()
    attend_differentiable(*tensors, Variant(key_mask=mask)).square().sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad.masked_select(hidden) == 0).all()
        assert (tensor.grad.masked_select(~hidden) != 0).any()


def test_capture_refuses_to_drop_a_gradient(draw: Any) -> None:
    inputs = draw(9)
    inputs.q.requires_grad_()
    with pytest.raises(Refused, match="attend_differentiable"):
        attend(*inputs)
    with torch.no_grad():
        assert not attend(*inputs)["z"].requires_grad


def test_a_soft_cap_is_refused(draw: Any) -> None:
    inputs = draw(9)
    with pytest.raises(Refused, match=r"softcap: .*ablate heads"):
        attend_differentiable(inputs.q, inputs.k, inputs.v, Variant(softcap=30.0))
