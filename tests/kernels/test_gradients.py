"""Gradients of attention: against autograd through the whole matrix in float64."""

from typing import Any

import pytest
import torch
from attention_inputs import noise as random
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, WeightEdits, attend_differentiable

TOKENS, HEADS = 21, 4


def padded(side: str) -> Tensor:
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[0, slice(0, 5) if side == "left" else slice(-5, None)] = False
    return mask


KNOCKED = random(2, HEADS, TOKENS).masked_fill(torch.arange(TOKENS) % 5 == 0, -torch.inf)
FIXED = random(1, HEADS, TOKENS, TOKENS).abs().tril()
FIXED = (FIXED / FIXED.sum(dim=-1, keepdim=True)).index_fill(2, torch.arange(3, 15), torch.nan)
SPANS = (torch.arange(TOKENS) % 4 - 1).expand(2, TOKENS)

CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"causal": False},
    "window": {"window": 4},
    "window both ways": {"window": 4, "causal": False},
    "cached keys": {"queries": 8},
    "more queries than keys": {"keys": 9},
    "cross": {"queries": 8, "causal": False},
    "one KV head": {"kv_heads": 1, "scale": 0.3},
    "wide values": {"value_size": 12},
    "soft cap": {"softcap": 1.2},
    "alibi": {"slopes": torch.tensor([0.5, 0.25, 0.125, 0.0])},
    "bias": {"bias": random(1, HEADS, TOKENS, TOKENS)},
    "sinks": {"sinks": random(HEADS)},
    "sigmoid": {"sigmoid": True},
    "left padding": {"key_mask": padded("left")},
    "right padding": {"key_mask": padded("right")},
    "padding both ways": {
        "causal": False, "key_mask": padded("left"), "query_mask": padded("right")
    },
    "padding and sinks": {"key_mask": padded("left"), "sinks": random(HEADS)},
    "packed": {"lengths": (6, 1, 14)},
    "gate": {"edits": {"gate": random(2, HEADS)}},
    "gate for all": {"edits": {"gate": random(1, HEADS)}, "softcap": 1.2},
    "temperature": {"edits": {"temperature": torch.tensor([0.5, 1.0, 2.0, 4.0])}},
    "key bias": {"edits": {"key_bias": KNOCKED}},
    "span bias": {
        "edits": {"span_bias": random(1, 3, 3), "query_spans": SPANS, "key_spans": SPANS}
    },
    "fixed pattern": {"softcap": 1.2, "edits": {"pattern": FIXED}},
    "first and recent": {
        "edits": {"first": torch.tensor([0, 1, 2, 0]), "recent": torch.tensor([1, 3, 2, 0])}
    },
    "much at once": {
        "window": 9, "softcap": 1.2, "slopes": torch.tensor([0.5, 0.25, 0.125, 0.0]),
        "sinks": random(HEADS), "key_mask": padded("left"),
        "edits": {"gate": random(2, HEADS), "temperature": torch.tensor([0.5, 1.0, 2.0, 4.0])},
    },
}  # fmt: skip
RESULTS = ("z", "lse", "entropy", "span_mass")


class Call:
    """The inputs of one case, as leaves of their own type, and what a loss multiplies."""

    def __init__(self, case: str, dtype: torch.dtype = torch.float64, size: int = 8) -> None:
        given = dict(CASES[case])
        queries, keys = given.pop("queries", TOKENS), given.pop("keys", TOKENS)
        kv_heads, value_size = given.pop("kv_heads", 2), given.pop("value_size", size)
        shapes = {
            "q": (2, HEADS, queries, size),
            "k": (2, kv_heads, keys, size),
            "v": (2, kv_heads, keys, value_size),
        }
        self.leaves = {name: 1.5 * random(*shape) for name, shape in shapes.items()}
        self.edits = dict(given.pop("edits", {}))
        if "gate" in self.edits:
            self.leaves["gate"] = self.edits.pop("gate")
        if "sinks" in given:
            self.leaves["sinks"] = given.pop("sinks")
        self.leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in self.leaves.items()}
        self.options = given
        self.spans = torch.arange(keys).remainder(4)[None].expand(2, keys) - 1
        self.stats = ("span_mass",) if given.get("sigmoid") else RESULTS[1:]

    def spec(self, leaves: dict[str, Tensor]) -> AttentionSpec:
        edits = WeightEdits(**self.edits, gate=leaves.get("gate"))
        return AttentionSpec(**self.options, sinks=leaves.get("sinks"), edits=edits)

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute every result, in the order of ``leaves``; missing values are 0."""
        leaves = dict(zip(self.leaves, tensors, strict=True))
        request = Request(stats=self.stats, spans=self.spans)
        results = attend_differentiable(*tensors[:3], request, self.spec(leaves))
        return tuple(known(result) for result in results.values())

    def dense(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the same from the whole matrix, by formulas of autograd's own."""
        leaves = dict(zip(self.leaves, (tensor.double() for tensor in tensors), strict=True))
        q, k, v = (leaves[name] for name in ("q", "k", "v"))
        options, edits = self.options, self.edits
        (queries, size), keys, causal = q.shape[2:], k.shape[2], options.get("causal", True)
        place = torch.arange(queries)[:, None] + (keys - queries if causal else 0)
        key = torch.arange(keys)
        sees = (key <= place) if causal else torch.ones(queries, keys, dtype=torch.bool)
        if "window" in options:
            sees = sees & ((place - key).abs() < options["window"])
        if "lengths" in options:
            document = torch.repeat_interleave(torch.tensor(options["lengths"]))
            sees = sees & (document[:, None] == document)
        sees = sees.expand(2, HEADS, queries, keys)
        real = options.get("key_mask", torch.ones(2, keys, dtype=torch.bool))
        real_queries = options.get("query_mask", real if "key_mask" in options else None)
        sees = sees & real[:, None, None]
        if real_queries is not None:
            sees = sees & real_queries[:, None, :, None]
            q = torch.where(real_queries[:, None, :, None], q, 0.0)
        k, v = (torch.where(real[:, None, :, None], one, 0.0) for one in (k, v))
        k, v = (one.repeat_interleave(HEADS // one.shape[1], dim=1) for one in (k, v))
        scores = q @ k.mT * options.get("scale", size**-0.5)
        if "softcap" in options:
            scores = options["softcap"] * (scores / options["softcap"]).tanh()
        if "slopes" in options:
            scores = scores - options["slopes"][:, None, None] * (place - key).abs()
        scores = scores + options.get("bias", 0.0)
        temperature = edits.get("temperature", torch.ones(HEADS))
        scores = scores / temperature[:, None, None]
        if "key_bias" in edits:
            sees = sees & edits["key_bias"].isfinite()[:, :, None]
            scores = scores + edits["key_bias"].nan_to_num(neginf=0.0)[:, :, None]
        if "span_bias" in edits:
            table = torch.nn.functional.pad(edits["span_bias"][0], (1, 0, 1, 0))
            scores = scores + table[edits["query_spans"] + 1][
                torch.arange(2)[:, None, None], torch.arange(queries)[:, None],
                edits["key_spans"][:, None] + 1,
            ][:, None]  # fmt: skip
        if "recent" in edits:
            first, recent = (edits[name][:, None, None] for name in ("first", "recent"))
            sees = sees & ((place - key < recent) | (key < first) | (recent == 0))
        if "pattern" in edits:
            scores = torch.where(edits["pattern"].isnan(), scores, edits["pattern"].log())
        valid_queries = sees.any(dim=-1, keepdim=True)
        belongs = (self.spans[..., None] == torch.arange(3)).double()
        if options.get("sigmoid"):
            weights = torch.where(sees, torch.sigmoid(scores), 0.0)
            return weights @ v, weights @ belongs[:, None]
        sinks = leaves.get("sinks", torch.full((HEADS,), -1e30).double()) / temperature
        scores = torch.where(sees, scores, -1e30)
        scores = torch.cat((scores, sinks[:, None, None].expand(2, -1, queries, 1)), dim=-1)
        logs = scores.log_softmax(dim=-1)
        weights = logs.exp()
        z = weights[..., :-1] @ v * leaves.get("gate", torch.ones(1, HEADS))[:, :, None, None]
        results = (
            torch.where(valid_queries, z, 0.0),
            torch.where(valid_queries, scores.logsumexp(dim=-1, keepdim=True), 0.0)[..., 0],
            torch.where(valid_queries[..., 0], -(weights * logs).sum(dim=-1), 0.0),
            torch.where(valid_queries, weights[..., :-1] @ belongs[:, None], 0.0),
        )
        return results


def known(result: Tensor) -> Tensor:
    """Put 0 for missing values, so that a sum can be taken and no gradient passes."""
    return torch.where(result.isfinite(), result, 0.0)


def slopes(call: Call, results: tuple[Tensor, ...], index: int) -> dict[str, Tensor]:
    """Differentiate a random combination of one result."""
    loss = (results[index].double() * random(*results[index].shape).double()).sum()
    leaves = list(call.leaves.values())
    result = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    pairs = zip(call.leaves, leaves, result, strict=True)
    return {n: torch.zeros_like(leaf) if one is None else one for n, leaf, one in pairs}


def check(call: Call, bound: float) -> None:
    """Compare every result and each of its gradients with the whole matrix."""
    leaves = list(call.leaves.values())
    results, expected = call.run(*leaves), call.dense(*leaves)
    moved = set()
    for index in range(len(results)):
        torch.testing.assert_close(results[index].double(), expected[index], rtol=bound, atol=bound)
        got, exact = slopes(call, results, index), slopes(call, expected, index)
        for name, one in exact.items():
            error = (got[name].double() - one.double()).abs().max().item()
            largest = max(one.abs().max().item(), 1.0)
            assert error <= bound * largest, f"{RESULTS[index]} in {name}: off by {error:.2g}"
            if one.abs().max() > 1e-3:
                moved.add(name)
    assert moved == set(call.leaves), "the loss of this case does not depend on some input"


@pytest.fixture(params=["one panel", "many panels and parts"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one panel":
        # A few rows of one head at a time: heads of a KV head go to parts of their own.
        monkeypatch.setattr("headscope.kernels.panels.plan.ROWS", 5)
        monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", 64)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("case", CASES)
def test_gradients_in_float64(case):
    check(Call(case), 1e-10)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("case", CASES)
def test_gradients_in_float32(case):
    check(Call(case, torch.float32), 5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["causal", "soft cap", "left padding", "much at once"])
def test_gradients_of_half_precision_inputs(case, dtype):
    # Everything is computed in float32; only the gradients are rounded to the inputs' type.
    check(Call(case, dtype), torch.finfo(dtype).eps)


@pytest.mark.parametrize("case", ["causal", "soft cap", "sinks", "much at once"])
def test_gradients_equal_finite_differences(case):
    call = Call(case, size=2)
    assert torch.autograd.gradcheck(call.run, tuple(call.leaves.values()), fast_mode=True)


def test_z_alone_of_plain_attention_comes_from_fused_attention():
    for options in ({}, {"causal": False}, {"scale": 0.4}):
        call = Call("gate")
        leaves = list(call.leaves.values())
        call.options = options
        z = attend_differentiable(*leaves[:3], spec=call.spec(call.leaves))["z"]
        names = {node.name() for node in ancestors(z.grad_fn)}
        assert any("ScaledDotProduct" in name for name in names)
        got, exact = slopes(call, (z,), 0), slopes(call, call.dense(*leaves), 0)
        for name, one in exact.items():
            torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-9)


def ancestors(node: Any) -> list[Any]:
    return [node, *(a for n, _ in node.next_functions if n is not None for a in ancestors(n))]


@pytest.mark.parametrize("case", ["left padding", "right padding", "padding both ways"])
@pytest.mark.parametrize("sinks", [False, True])
def test_what_stands_at_padding_reaches_no_gradient(case, sinks):
    clean, spoilt = Call(case, torch.float32), Call(case, torch.float32)
    for call in (clean, spoilt):
        if sinks:
            call.leaves["sinks"] = random(HEADS).requires_grad_()
    real = clean.options["key_mask"]
    queries = clean.options.get("query_mask", real)
    hidden = {"q": ~queries, "k": ~real, "v": ~real}
    with torch.no_grad():
        for name, mask in hidden.items():
            spoilt.leaves[name][mask[:, None].expand(spoilt.leaves[name].shape[:3])] = torch.nan
    # The first or the last of these spans is padding only in the first text.
    spans = (torch.arange(TOKENS) // 5).expand(2, TOKENS)
    request = Request(stats=RESULTS[1:], spans=spans)
    grads = []
    for call in (clean, spoilt):
        leaves = list(call.leaves.values())
        results = attend_differentiable(*leaves[:3], request, call.spec(call.leaves))
        upstream = [random(*result.shape) for result in results.values()]
        if call is spoilt:
            for first, result in zip(upstream, results.values(), strict=True):
                first[(~queries)[:, None].expand(first.shape[:3])] = torch.nan
                first[result.isnan()] = torch.nan
        grads.append(torch.autograd.grad(tuple(results.values()), leaves, upstream))
    for name, first, second in zip(clean.leaves, *grads, strict=True):
        assert torch.equal(first, second), f"{name} depends on padding"
        if name in hidden:
            assert (first[hidden[name][:, None].expand(first.shape[:3])] == 0).all()
        assert (first != 0).any()


def test_the_gradient_of_a_gate_is_z_times_its_gradient():
    call = Call("gate")
    plain = Call("causal").run(*list(call.leaves.values())[:3])[0]
    results = call.run(*call.leaves.values())
    upstream = random(*plain.shape).double()
    (grad,) = torch.autograd.grad(results[0], call.leaves["gate"], upstream)
    torch.testing.assert_close(grad, (plain * upstream).sum(dim=(2, 3)), rtol=1e-12, atol=1e-12)


def test_a_scaled_loss_has_scaled_gradients():
    call = Call("left padding", torch.float32)
    plain, scaled = (
        torch.autograd.grad(factor * call.run(*call.leaves.values())[2].sum(), call.leaves["k"])[0]
        for factor in (1.0, 2.0**40)
    )
    assert torch.equal(scaled, plain * 2.0**40)


def test_threads_do_not_show_in_gradients(monkeypatch):
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", 1 << 12)
    leaves = [random(2, heads, 600, 8).requires_grad_() for heads in (4, 1, 1)]
    grads = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        z = attend_differentiable(*leaves, spec=AttentionSpec(softcap=2.0))["z"]
        grads.append(torch.autograd.grad(z.square().sum(), leaves))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
