"""Every statistic on the GPU against the dense float64 oracle, at moderate lengths."""

from typing import Any

import pytest
import torch
from attention_inputs import CHOICES, VARIANTS, Inputs, check_same, check_within, spec
from torch import Tensor

from headscope.kernels.api import AttentionSpec, attend_dense
from headscope.kernels.attention import attend, engine_of
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.triton.engine import TritonEngine

ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Rounding of weights before their product with values."""


def on(device: torch.device, inputs: Inputs) -> dict[str, Tensor]:
    """Attend on the GPU and bring the results back."""
    tensors = (x.to(device) for x in (inputs.q, inputs.k, inputs.v))
    results = attend(*tensors, inputs.request, AttentionSpec(**inputs.options), engine="triton")
    return {name: result.cpu() for name, result in results.items()}


def check(inputs: Inputs, got: dict[str, Tensor]) -> None:
    """Fail unless the GPU and float64 agree, NaN and infinity in the same places."""
    dense = attend_dense(*inputs, AttentionSpec(**inputs.options))
    assert set(got) == set(dense)
    lse = dense.get("lse", torch.zeros(1))
    logit = max([1.0, *lse[lse.isfinite()].abs().amax(dim=0, keepdim=True).flatten().tolist()])
    for name, expected in dense.items():
        result = got[name]
        assert torch.equal(result.isnan(), expected.isnan()), f"{name}: NaN elsewhere"
        near = 2e-6 + logit * 2**-20
        if name in CHOICES:
            CHOICES[name](result, dense, inputs, near)
            continue
        check_within(name, result, expected, near + ROUNDING[inputs.q.dtype] * (name == "z"))


@pytest.mark.parametrize("length", [1, 63, 100, 300])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_statistic_in_every_variant(name, length, device):
    inputs = Inputs(**spec(name, length))
    check(inputs, on(device, inputs))


SHAPES: dict[str, dict[str, Any]] = {
    "D64": {"size": 64, "value_size": 64},
    "D128": {"size": 128, "value_size": 128},
    "D256": {"size": 256, "value_size": 256},
    "D96": {"size": 96, "value_size": 96},
    "MLA": {"size": 192, "value_size": 128},
    "padded": {"size": 128, "value_size": 128, "key_mask": torch.arange(700) < 650},
    "decoding": {"size": 128, "value_size": 128, "queries": 1},
    "several terms": {
        "size": 64, "value_size": 64, "softcap": 20.0, "window": 300,
        "slopes": torch.tensor([0.5, 0.25, 0.1, 0.0]), "sinks": torch.tensor([0.0, 3.0, -2.0, 1.0]),
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_configuration_of_this_gpu(shape, dtype, device):
    expected = {"queries": 700, "keys": 700, "dtype": dtype, **SHAPES[shape]}
    if dtype == torch.float32:
        expected |= {name: min(expected[name], 128) for name in ("size", "value_size")}
    if "key_mask" in expected:
        expected["key_mask"] = expected["key_mask"].expand(2, -1)
    inputs = Inputs(**expected)
    check(inputs, on(device, inputs))


def test_a_gpu_is_used_without_being_asked_for(device):
    q = torch.zeros(1, 1, 8, 64, device=device)
    engine = engine_of(Panels(q, q, q, AttentionSpec().fit(q, q)), "auto")
    assert isinstance(engine.__self__, TritonEngine)  # type: ignore[attr-defined]


def test_results_are_the_same_twice(device):
    inputs = Inputs(1500, size=64, value_size=64, dtype=torch.bfloat16)
    check_same(on(device, inputs), on(device, inputs))
