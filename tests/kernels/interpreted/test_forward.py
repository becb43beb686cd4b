"""The forward kernel against the dense float64 oracle, in every variant that the panels know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from panel_tests import VARIANTS, noise, variant
from torch import Tensor

from headscope.kernels.attention import attend
from headscope.kernels.dense import attend_dense
from headscope.kernels.gpu import first_pass, stock
from headscope.kernels.gpu.configuration import Configuration
from headscope.kernels.gpu.engine import TritonEngine
from headscope.kernels.gpu.forward import attend_queries
from headscope.kernels.gpu.launch import Launch
from headscope.kernels.panels import Panels
from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.kernels.statistics import load
from headscope.kernels.variant import Variant

ROWS = ("lse", "max_weight", "entropy", "sink_mass")
REQUEST = Request(stats=ROWS)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Rounding of weights before their product with values."""


def check(got: dict[str, Tensor], dense: dict[str, Tensor], *, rounding: float = 0.0) -> None:
    """Fail unless both agree, NaN and infinity in the same places.

    Logits are rounded to one part in 2²⁴, and weights are off by as much as their logits: the
    panels have float64 for large logits, the kernel has not.
    """
    assert set(got) == set(dense)
    logit = 1.0
    if "lse" in dense and dense["lse"].isfinite().any():
        logit = max(dense["lse"][dense["lse"].isfinite()].abs().max().item(), 1.0)
    for name, expected in dense.items():
        found = got[name]
        assert found.dtype == torch.float32
        assert torch.equal(found.isnan(), expected.isnan()), f"{name}: NaN elsewhere"
        finite = expected.isfinite()
        assert torch.equal(found[~finite].nan_to_num(), expected[~finite].float().nan_to_num())
        if finite.any():
            error = (found[finite].double() - expected[finite]).abs().max().item()
            largest = max(expected[finite].abs().max().item(), 1.0)
            bound = (1e-6 + logit * 2**-22 + rounding * (name == "z")) * largest
            assert error <= bound, f"{name}: off by {error:.2g}, allowed {bound:.2g}"


def expected_of(inputs: Any, options: Variant, request: Request = REQUEST) -> dict[str, Tensor]:
    return attend_dense(inputs.q, inputs.k, inputs.v, request, options)


def result_of(inputs: Any, options: Variant, request: Request = REQUEST) -> dict[str, Tensor]:
    return attend(inputs.q, inputs.k, inputs.v, request, options, engine="triton")


@pytest.mark.parametrize("length", [1, 63, 100])
@pytest.mark.parametrize("name", VARIANTS)
def test_forward_agrees_with_dense_float64(name: str, length: int, draw: Any) -> None:
    inputs = draw(**variant(name, length))
    options = Variant(**inputs.options)
    check(
        result_of(inputs, options),
        expected_of(inputs, options),
        rounding=ROUNDING[inputs.q.dtype],
    )
