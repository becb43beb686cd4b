"""Products with attention matrices against the dense matrix, and by what they must satisfy."""

from functools import cache
from typing import Any

import pytest
import torch
from attention_inputs import holes, noise, streaming
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from refusals import check_refusal
from torch import Tensor

from headscope.kernels.api import (
    AttentionSpec,
    Gradient,
    Request,
    WeightEdits,
    attend,
    attend_dense,
    pull,
    push,
)
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels.row_panels import Part
from headscope.kernels.products import Product, Total

PATTERN = Request(stats=("pattern",))


def padding(length: int) -> Tensor:
    """Left padding of one sequence, right padding of the other."""
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, : length // 3] = mask[1, length - length // 4 :] = False
    return mask


def variants(length: int) -> dict[str, dict[str, Any]]:
    """The arguments of `draw`, by the name of a variant."""
    four, cut = torch.tensor([0.5, 0.25, 0.1, 0.0]), torch.tensor([[[0.0, -torch.inf], [1.5, 0.0]]])
    spans = (torch.arange(length) % 3 - 1).expand(2, -1)
    return {
        "causal": {},
        "bidirectional": {"causal": False},
        "all heads share k": {"kv_heads": 1},
        "no head shares k": {"kv_heads": 4},
        "window": {"window": 9},
        "window to both sides": {"window": 9, "causal": False},
        "more keys": {"keys": length + 30},
        "fewer keys": {"keys": max(length - 30, 1)},
        "cross": {"keys": length + 30, "causal": False},
        "padded": {"key_mask": padding(length)},
        "padded, in a window": {"key_mask": padding(length), "window": 9},
        "queries padded": {
            "key_mask": padding(length), "query_mask": padding(length), "causal": False,
        },
        "packed": {"lengths": (length - 20, 1, 19)},
        "soft cap": {"softcap": 2.0},
        "scaled": {"scale": 0.1},
        "alibi": {"slopes": four},
        "bias": {"bias": holes(2, 1, length, length)},
        "sinks": {"sinks": torch.tensor([0.0, 3.0, -20.0, 60.0])},
        "sigmoid": {"sigmoid": True},
        "temperatures": {"edits": WeightEdits(temperature=four + 0.5)},
        "keys knocked out": {"edits": WeightEdits(key_bias=holes(1, 4, length))},
        "spans cut": {"edits": WeightEdits(span_bias=cut, query_spans=spans, key_spans=spans)},
        "streaming heads": {"edits": streaming(), "key_mask": padding(length)},
        "sharp": {"sigma": 64.0},
        "bfloat16": {"dtype": torch.bfloat16},
    }  # fmt: skip


class Case:
    """A call, its dense matrices in float64, and vectors on both sides; padding is NaN."""

    def __init__(self, draw: Any, name: str, length: int, vectors: int = 3) -> None:
        inputs = draw(**{"queries": length, "value_size": 5, **variants(length)[name]})
        self.q, self.k, self.v, _ = inputs
        self.spec = AttentionSpec(**inputs.options)
        self.maps = attend_dense(self.q, self.k, self.v, PATTERN, self.spec)["pattern"]
        self.maps = self.maps.nan_to_num()
        batch, heads, queries, keys = self.maps.shape
        self.logit = 64.0 * 20 if name == "sharp" else 12.0
        self.x = noise(batch, heads, keys, vectors)
        self.r = noise(batch, heads, queries, vectors, seed=1)
        self.dz = noise(batch, heads, queries, 5, seed=2).to(self.q.dtype)
        self.clean = {"x": self.x.double(), "r": self.r.double(), "v": self.v.double()}
        mask = self.spec.key_mask
        if mask is not None:
            hidden = ~mask[:, None, :, None]
            for name in ("x", "v"):
                self.clean[name] = self.clean[name].masked_fill(hidden, 0.0)
                setattr(self, name, getattr(self, name).masked_fill(hidden, torch.nan))
            self.k = self.k.masked_fill(hidden, torch.nan)
            if queries == keys:
                for name in ("q", "r", "dz"):
                    setattr(self, name, getattr(self, name).masked_fill(hidden, torch.nan))
                self.clean["r"] = self.clean["r"].masked_fill(hidden, 0.0)

    @property
    def call(self) -> tuple[Tensor, Tensor, AttentionSpec]:
        return self.q, self.k, self.spec


NAMES = list(variants(63))


@pytest.fixture(scope="module")
def case(draw: Any) -> Any:
    return cache(lambda name, length=63, **more: Case(draw, name, length, **more))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [63, 150])
def test_both_directions_equal_the_dense_matrix(name, length, case, agree):
    product = case(name, length)
    pulled = product.maps @ product.clean["x"]
    pushed = product.maps.mT @ product.clean["r"]
    agree("pull", pull(product.x, *product.call), pulled, logit=product.logit)
    agree("push", push(product.r, *product.call), pushed, logit=product.logit)


@pytest.mark.parametrize("name", ["causal", "padded", "sinks", "no head shares k", "fewer keys"])
def test_heads_added_or_alike(name, case, agree):
    product = case(name)
    factors = torch.tensor([0.5, 2.0, -1.0, 0.0])
    total = (product.maps * factors.view(4, 1, 1)).sum(dim=1, keepdim=True)
    for shared in (True, False):
        chosen = slice(0, 1) if shared else slice(None)
        x, r = product.x[:, chosen], product.r[:, chosen]
        clean_x, clean_r = product.clean["x"][:, chosen], product.clean["r"][:, chosen]
        agree("pull", pull(x, *product.call), product.maps @ clean_x, logit=product.logit)
        agree("push", push(r, *product.call), product.maps.mT @ clean_r, logit=product.logit)
        pulled, pushed = (
            pull(x, *product.call, heads=factors),
            push(r, *product.call, heads=factors),
        )
        keeps_logits = (product.maps @ clean_x) * factors.view(4, 1, 1)
        agree("pull", pulled, keeps_logits.sum(dim=1, keepdim=True), logit=product.logit)
        keeps_logits = (product.maps.mT @ clean_r) * factors.view(4, 1, 1)
        agree("push", pushed, keeps_logits.sum(dim=1, keepdim=True), logit=product.logit)
        if shared:
            agree("pull", pulled, total @ clean_x, logit=product.logit)
            agree("push", pushed, total.mT @ clean_r, logit=product.logit)


def slopes_of(one: Case, dz: Tensor | None = None) -> Tensor:
    """Differentiate the loss Σ dz · z in every weight, with gates in z, by autograd."""
    dz = one.dz if dz is None else dz
    weights = one.maps.clone().requires_grad_(True)
    values = one.clean["v"].repeat_interleave(4 // one.v.shape[1], dim=1)
    edits = one.spec.edits
    gate = torch.ones(1, 4) if edits is None or edits.gate is None else edits.gate
    z = (weights @ values) * gate.double()[..., None, None]
    return torch.autograd.grad((z * dz.double().nan_to_num()).sum(), weights)[0]


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_autograd(name, positive, case, agree):
    product = case(name)
    shares = product.maps * slopes_of(product)
    shares = shares.clamp_min(0.0) if positive else shares
    gradient = Gradient(product.v, product.dz, positive)
    pulled = pull(product.x, *product.call, gradient=gradient)
    pushed = push(product.r, *product.call, gradient=gradient)
    agree("pull", pulled, shares @ product.clean["x"], logit=product.logit + 40)
    agree("push", pushed, shares.mT @ product.clean["r"], logit=product.logit + 40)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_gradient_multiplies_the_first(name, case, agree):
    product = case(name)
    other = product.dz.flip(-1)
    shares = (product.maps * slopes_of(product) * slopes_of(product, other)).clamp_min(0.0)
    gradient = Gradient(product.v, product.dz, relevance=other)
    pulled, pushed = (
        pull(product.x, *product.call, gradient=gradient),
        push(product.r, *product.call, gradient=gradient),
    )
    agree("pull", pulled, shares @ product.clean["x"], logit=product.logit + 80)
    agree("push", pushed, shares.mT @ product.clean["r"], logit=product.logit + 80)


def test_a_gate_is_in_the_gradient_and_not_in_the_weights(draw, agree):
    one = Case(draw, "causal", 40)
    plain = one.maps @ one.clean["x"]
    one.spec = AttentionSpec(edits=WeightEdits(gate=torch.tensor([[0.0, 1.0, -2.0, 0.5]])))
    agree("pull", pull(one.x, *one.call), plain, logit=12.0)
    shares = (one.maps * slopes_of(one)).clamp_min(0.0)
    pulled = pull(one.x, *one.call, gradient=Gradient(one.v, one.dz))
    agree("pull", pulled, shares @ one.clean["x"], logit=50.0)


def test_signed_shares_add_up_to_the_loss(case):
    """Σ_ij P_ij ∂L/∂P_ij is dz · z: what each query says of the loss."""
    product = case("window")
    z = attend(product.q, product.k, product.v, Request(stats=()), product.spec)["z"]
    ones = torch.ones(2, 1, 63, 1)
    shares = pull(ones, *product.call, gradient=Gradient(product.v, product.dz, positive=False))
    torch.testing.assert_close(shares[..., 0], (z * product.dz).sum(-1), rtol=1e-5, atol=1e-5)


shapes = st.fixed_dictionaries(
    {
        "queries": st.integers(1, 150),
        "extra": st.integers(-40, 60),
        "causal": st.booleans(),
        "window": st.none() | st.integers(1, 100),
        "kv_heads": st.sampled_from((1, 2, 4)),
        "vectors": st.integers(1, 9),
        "sigma": st.sampled_from((0.0, 1.0, 10.0)),
        "masked": st.booleans(),
        "shared": st.booleans(),
        "weighted": st.booleans(),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes)
def test_one_direction_is_the_adjoint_of_the_other(shape, draw):
    queries = shape["queries"]
    keys = max(queries + shape["extra"], 1)
    inputs = draw(queries, keys, kv_heads=shape["kv_heads"], sigma=shape["sigma"])
    mask, real = torch.ones(2, keys, dtype=torch.bool), torch.ones(2, queries, dtype=torch.bool)
    if shape["masked"]:
        mask[0, ::3] = False
    order = {"causal": shape["causal"], "window": shape["window"]}
    spec = AttentionSpec(**order, key_mask=mask, query_mask=real)
    call = inputs.q, inputs.k, spec
    heads = 1 if shape["shared"] else 4
    x = noise(2, heads, keys, shape["vectors"])
    r = noise(2, heads, queries, shape["vectors"], seed=3)
    pulled, pushed = pull(x, *call), push(r, *call)
    left = (pulled.double() * r).sum(dim=(0, 2))
    right = (pushed.double() * x).sum(dim=(0, 2))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5 * (queries + keys))
    if shape["weighted"]:
        factors = noise(4)
        together = push(r, *call, heads=factors)
        keeps_logits = (pushed * factors.view(4, 1, 1)).sum(dim=1, keepdim=True)
        torch.testing.assert_close(together, keeps_logits, rtol=1e-5, atol=1e-4)
    # Rows sum to one wherever a query sees a key.
    sums = pull(torch.ones(2, 1, keys, 1), *call)[..., 0]
    lse = attend(inputs.q, inputs.k, inputs.v, Request(stats=("lse",)), spec)["lse"]
    torch.testing.assert_close(sums, lse.isfinite().float(), rtol=1e-6, atol=2e-6)


def test_sums_of_rows_and_columns_are_those_of_the_capture(case):
    product = case("sinks")
    result = attend(
        product.q,
        product.k,
        product.v,
        Request(stats=("learned_sink_mass", "received")),
        product.spec,
    )
    ones = torch.ones(2, 1, 63, 1)
    rows, columns = pull(ones, *product.call)[..., 0], push(ones, *product.call)[..., 0]
    torch.testing.assert_close(rows, 1 - result["learned_sink_mass"], rtol=1e-5, atol=1e-6)
    query_counts = torch.arange(63, 0, -1)
    torch.testing.assert_close(columns, result["received"] * query_counts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_layer_after_layer_is_the_product_of_matrices(with_gradient, case):
    """The last row through the mean maps of two layers, the residual stream mixed in."""
    layers = [case("window"), case("all heads share k")]
    mean = torch.full((4,), 0.25)
    row = torch.zeros(2, 1, 63, 2)
    row[:, 0, 40, 0] = row[:, 0, 33, 1] = 1.0
    expected = row.double()
    for layer in reversed(layers):
        weights = layer.maps
        gradient = None
        if with_gradient:
            weights = (weights * slopes_of(layer)).clamp_min(0.0)
            gradient = Gradient(layer.v, layer.dz)
        row = row + push(row, *layer.call, heads=mean, gradient=gradient)
        mixed = weights.mean(dim=1, keepdim=True) + torch.eye(63)
        expected = mixed.mT @ expected
    torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-6)
    if not with_gradient:
        # Rows of each layer sum to 2.
        torch.testing.assert_close(row[..., 0].sum(-1), torch.full((2, 1), 4.0))


@pytest.mark.parametrize("elements", [1, 1 << 12])
@pytest.mark.parametrize("rows", [1, 50])
def test_the_cut_into_panels_does_not_matter(elements, rows, case, monkeypatch):
    product = case("padded")
    gradient, factors = Gradient(product.v, product.dz), noise(4)
    calls = [
        lambda: pull(product.x, *product.call, gradient=gradient),
        lambda: push(product.r, *product.call),
        lambda: push(product.r, *product.call, heads=factors),
    ]
    usual = [call() for call in calls]
    monkeypatch.setattr("headscope.kernels.panels.plan.ROWS", rows)
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", elements)
    for call, before in zip(calls, usual, strict=True):
        torch.testing.assert_close(call(), before, rtol=1e-5, atol=1e-5)


def test_the_number_of_threads_never_shows(case, monkeypatch):
    product = case("no head shares k", 150)
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", 1 << 10)
    factors = noise(4)
    alone = push(product.r, *product.call, heads=factors), pull(product.x, *product.call)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(push(product.r, *product.call, heads=factors), alone[0])
        assert torch.equal(pull(product.x, *product.call), alone[1])


def test_heads_are_added_in_their_order_whichever_ends_first():
    terms = torch.tensor([1.0, 1e8, -1e8]).view(3, 1, 1, 1, 1)  # 1 is lost in that order alone
    parts = [Part(slice(0, 1), slice(head, head + 1), slice(0, 1), 1) for head in range(3)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        total = Total(torch.zeros(1, 1, 1, 1), summed=True)
        for head in order:
            total.add(parts[head], terms[head])
        assert total.result.item() == 0.0
        assert not total.waiting


def test_panels_of_queries_that_hold_nothing_are_left_out(case, monkeypatch):
    one = case("causal", 150)
    monkeypatch.setattr("headscope.kernels.panels.plan.ROWS", 32)
    done: list[slice] = []
    weigh = Product.weigh

    def counted(product: Product, panel: Any, part: Any) -> Tensor:
        done.append(panel.queries)
        return weigh(product, panel, part)

    monkeypatch.setattr(Product, "weigh", counted)
    row = torch.zeros(2, 4, 150, 3)
    assert torch.equal(push(row, *one.call), row)
    assert done == []
    row[1, 2, 40, 1] = 2.0
    row[0, 3, 130, 2] = -1.0
    pushed = push(row, *one.call)
    assert {queries.start for queries in done} == {32, 128}
    torch.testing.assert_close(pushed.double(), one.maps.mT @ row.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.requirement("F1")
@pytest.mark.long
def test_16k_tokens_as_torch_in_linear_memory():
    """Forward, vectors are values of fused attention; backward, its gradient in the values."""
    length = 16384
    q, k = noise(1, 2, length, 32), noise(1, 1, length, 32, seed=1)
    x, r = noise(1, 1, length, 32, seed=2), noise(1, 2, length, 32, seed=3)
    with LargestTensor() as mode:
        pulled, pushed = pull(x, q, k), push(r, q, k, heads=torch.ones(2))
    # Three buffers of a panel of 256 queries, on large pages of 2 MB.
    assert mode.elements <= 3 * 256 * length + (1 << 19)
    x.requires_grad_(True)
    shared = (tensor.expand(-1, 2, -1, -1) for tensor in (k, x))
    z = torch.nn.functional.scaled_dot_product_attention(q, *shared, is_causal=True)
    torch.testing.assert_close(pulled, z, rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(pushed, torch.autograd.grad(z, x, r)[0], rtol=1e-4, atol=3e-5)


@pytest.mark.unchecked_signatures
def test_what_does_not_fit_is_refused(draw):
    inputs = draw(20)
    x, call = noise(2, 1, 20, 1), (inputs.q, inputs.k)
    for name, vectors, words in (
        ("x", x[0], r"\(1, 20, 1\); give floats \(batch, head or 1, key, vector\)"),
        ("x", x.long(), "x: torch.int64"),
        ("x", x[..., :0], "x: torch.float32"),
        ("x", noise(2, 2, 20, 1), "x: shape"),
        ("x", noise(2, 1, 19, 1), "x: shape"),
        ("x", noise(1, 1, 20, 1), "x: shape"),
        ("r", noise(2, 1, 21, 1), "r: shape"),
    ):
        with pytest.raises(InvalidInput, match=words):
            (pull if name == "x" else push)(vectors, *call)
    check_refusal("heads", pull, x, *call, heads=torch.ones(2))
    with pytest.raises(InvalidInput, match="dz: shape"):
        pull(x, *call, gradient=Gradient(inputs.v, noise(2, 4, 20, 9)))
    check_refusal("v", pull, x, *call, gradient=Gradient(inputs.v[:, :, 1:], inputs.q))
    wide = Gradient(inputs.v, inputs.q, relevance=noise(2, 4, 20, 9))
    check_refusal("relevance", pull, x, *call, gradient=wide)
    check_refusal("k", pull, x, inputs.q, noise(2, 3, 20, 8))
    check_refusal("slopes", pull, x, *call, AttentionSpec(slopes=torch.ones(3)))
    for name in ("x", "q", "v", "dz"):
        grown = {"x": x.clone(), "q": inputs.q.clone(), "v": inputs.v.clone()}
        grown["dz"] = noise(2, 4, 20, 8)
        grown[name].requires_grad_(True)
        gradient = Gradient(grown["v"], grown["dz"])
        with pytest.raises(InvalidInput, match=f"{name}: products keep no gradient"):
            pull(grown["x"], grown["q"], inputs.k, gradient=gradient)
        with torch.no_grad():
            result = pull(grown["x"], grown["q"], inputs.k, gradient=gradient)
        assert not result.requires_grad
