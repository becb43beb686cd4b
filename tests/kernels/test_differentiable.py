"""Attention with gradients: torch's contract, long texts, and what is refused."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from refusals import check_refusal
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, WeightEdits, attend, attend_differentiable
from headscope.kernels.differentiable import DIFFERENTIABLE
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.gradients.custom_op import NAMES, OF_EDITS, OF_VARIANT

ENTROPY = Request(stats=("entropy",))


def leaves(draw: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = draw(9, **options)
    return tuple(tensor.requires_grad_() for tensor in (inputs.q, inputs.k, inputs.v))


def arguments(draw: Any, **changes: Any) -> tuple[Any, ...]:
    q, k, v = leaves(draw, value_size=5)
    given: dict[str, Any] = dict.fromkeys(NAMES)
    given |= {"q": q, "k": k, "v": v, "scale": 0.5, "causal": True, "sigmoid": False}
    given |= {"fixed": [None] * len(OF_VARIANT + OF_EDITS), "stats": "z,lse,entropy,span_mass"}
    given |= {"spans": (torch.arange(9) % 4 - 1).expand(2, 9).contiguous(), "span_count": 3}
    return tuple({**given, **changes}.values())


def test_every_field_of_a_variant_reaches_the_operator():
    assert {field.name for field in fields(AttentionSpec)} <= {*NAMES, *OF_VARIANT, "edits"}
    assert {field.name for field in fields(WeightEdits)} == {"gate", *OF_EDITS}


@pytest.mark.parametrize(
    "changes",
    [{}, {"sinks": torch.zeros(4, requires_grad=True), "softcap": 2.0}, {"lengths": [4, 5]}],
    ids=["plain", "sinks and soft cap", "packed"],
)
def test_the_operators_keep_torchs_contract(draw, changes):
    given = arguments(draw, **changes)
    torch.library.opcheck(torch.ops.headscope.attend.default, given)
    given = tuple(one.detach() if isinstance(one, Tensor) else one for one in given)
    results = torch.ops.headscope.attend(*given)
    upstream = [torch.ones_like(result) for result in results]
    torch.library.opcheck(torch.ops.headscope.attend_backward.default, (*given, results, upstream))


def test_the_operator_is_one_step_of_a_compiled_function(draw):
    q, *others = arguments(draw)

    def loss(q: Tensor) -> Tensor:
        return sum(name.square().sum() for name in torch.ops.headscope.attend(q, *others))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(q), q)
    (got,) = torch.autograd.grad(compiled(q), q)
    torch.testing.assert_close(got, expected)


def test_results_are_those_of_capture(draw):
    inputs = draw(9)
    edits = WeightEdits(gate=torch.tensor([[0.5, 1.0, 2.0, 0.0]]))
    spec = AttentionSpec(softcap=2.0, edits=edits)
    request = Request(stats=DIFFERENTIABLE, spans=inputs.request.spans)
    expected = attend(inputs.q, inputs.k, inputs.v, request, spec)
    got = attend_differentiable(inputs.q, inputs.k, inputs.v, request, spec)
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.equal(got[name], one), name


def test_statistics_without_a_gradient_are_refused(draw):
    inputs = draw(9)
    for name in sorted(set(statistics.names()) - set(DIFFERENTIABLE)):
        request = Request(stats=(name,), targets=inputs.request.targets, spans=inputs.request.spans)
        with pytest.raises(NotApplicable, match=f"stats: {name} has no gradient.*no_grad"):
            attend_differentiable(inputs.q, inputs.k, inputs.v, request)
    with pytest.raises(InvalidInput, match="no statistic 'flatness'"):
        attend_differentiable(inputs.q, inputs.k, inputs.v, Request(stats=("flatness",)))
    sigmoid = AttentionSpec(sigmoid=True)
    for name in ("lse", "entropy"):
        with pytest.raises(NotApplicable, match=f"stats: {name} needs rows"):
            attend_differentiable(*leaves(draw), Request(stats=(name,)), sigmoid)


CONSTANTS: dict[str, Any] = {
    "slopes": lambda one: AttentionSpec(slopes=one),
    "bias": lambda one: AttentionSpec(bias=one[None, :, None, None]),
    "key_bias": lambda one: AttentionSpec(
        edits=WeightEdits(key_bias=one[None, :, None].expand(1, 4, 9))
    ),
    "temperature": lambda one: AttentionSpec(edits=WeightEdits(temperature=one)),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_get_no_gradient_in_silence(name, draw):
    inputs = draw(9)
    spec = CONSTANTS[name](torch.ones(4, requires_grad=True))
    with pytest.raises(InvalidInput, match=rf"^{name}: .*{name}\.detach\(\)"):
        attend_differentiable(inputs.q, inputs.k, inputs.v, ENTROPY, spec)
    with torch.no_grad():
        attend_differentiable(inputs.q, inputs.k, inputs.v, ENTROPY, spec)


@pytest.mark.parametrize("request_", [ENTROPY, Request(stats=())], ids=["ours", "fused"])
def test_a_second_derivative_is_refused(request_, draw):
    q, k, v = leaves(draw)
    result = list(attend_differentiable(q, k, v, request_).values())[-1]
    (grad,) = torch.autograd.grad(result.square().sum(), q, create_graph=True)
    with pytest.raises((NotApplicable, RuntimeError), match=r"second derivative|not implemented"):
        grad.sum().backward()


def test_vmap_is_refused(draw):
    inputs = draw(9)

    def one(q: Tensor) -> Tensor:
        return attend_differentiable(q, inputs.k, inputs.v, ENTROPY)["entropy"]

    check_refusal("vmap", torch.vmap(one), inputs.q.expand(3, *inputs.q.shape))


def test_capture_refuses_to_drop_a_gradient(draw):
    q, k, v = leaves(draw)
    check_refusal("q, k, v", attend, q, k, v, ENTROPY)
    with torch.no_grad():
        assert not attend(q, k, v, ENTROPY)["z"].requires_grad


def test_nothing_is_kept_without_a_gradient(draw):
    inputs = draw(9)
    results = attend_differentiable(inputs.q, inputs.k, inputs.v, ENTROPY)
    assert all(result.grad_fn is None for result in results.values())


def test_long_gradients_equal_those_of_fused_attention():
    length, scale = 8192, 0.25
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, heads, length, 16, generator=draw) for heads in (2, 1, 1))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    spans = (torch.arange(length) // 500 - 1)[None]
    request = Request(stats=("lse", "entropy", "span_mass"), spans=spans)
    results = attend_differentiable(q, k, v, request)
    upstream = [torch.randn(result.shape, generator=draw) for result in results.values()]
    got = torch.autograd.grad(tuple(results.values()), (q, k, v), upstream)

    def fused(values: Tensor) -> Tensor:
        options = {"is_causal": True, "enable_gqa": True}
        return torch.nn.functional.scaled_dot_product_attention(q, k, values, **options)

    # lse - entropy = Σ_j P_ij s_ij is attention with the keys as values; so is the gradient of lse.
    belongs = (spans[..., None] == torch.arange(16)).float()[:, None]
    mean = scale * (q * fused(k)).sum(dim=-1)
    by_lse = upstream[1] + upstream[2]
    results = (fused(v), fused(belongs), mean)
    upstream_of = upstream[0], upstream[3], -upstream[2]
    expected = list(torch.autograd.grad(results, (q, k, v), upstream_of))
    expected[0] = expected[0] + scale * by_lse[..., None] * fused(k).detach()
    stand_in = torch.zeros_like(k, requires_grad=True)
    (by_key,) = torch.autograd.grad(fused(stand_in), stand_in, scale * by_lse[..., None] * q)
    expected[1] = expected[1] + by_key
    for first, second in zip(got, expected, strict=True):
        assert (first - second).abs().max() / second.abs().max() < 1e-5
