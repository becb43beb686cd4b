"""The forward kernel against the dense float64 oracle, in every variant that the panels know."""

from typing import Any

import pytest
import torch
from attention_inputs import VARIANTS, check_same, check_within, spec
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, WeightEdits, attend, attend_dense
from headscope.kernels.errors import ResourceLimit
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.statistics import load
from headscope.kernels.triton import first_pass, sdpa
from headscope.kernels.triton.configuration import Configuration
from headscope.kernels.triton.engine import TritonEngine
from headscope.kernels.triton.forward import attend_queries
from headscope.kernels.triton.launch import LOG2E, Launch, Terms
from headscope.kernels.triton.plan import ways

ROWS = ("lse", "max_weight", "entropy", "learned_sink_mass")
REQUEST = Request(stats=ROWS)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Rounding of weights before their product with values."""


def check(
    got: dict[str, Tensor], dense: dict[str, Tensor], *, rounding: float = 0.0, slack: float = 0.0
) -> None:
    """Fail unless both agree, NaN and infinity in the same places.

    Logits are rounded to one part in 2²⁴, and weights are off by as much as their logits: the
    panels have float64 for large logits, the kernel has not.
    """
    assert set(got) == set(dense)
    logit = 1.0
    if "lse" in dense and dense["lse"].isfinite().any():
        logit = max(dense["lse"][dense["lse"].isfinite()].abs().max().item(), 1.0)
    for name, expected in dense.items():
        near = 1e-6 + slack + logit * 2**-22 + rounding * (name == "z")
        check_within(name, got[name], expected, near)


def expected_of(
    inputs: Any, options: AttentionSpec, request: Request = REQUEST
) -> dict[str, Tensor]:
    return attend_dense(inputs.q, inputs.k, inputs.v, request, options)


def result_of(inputs: Any, options: AttentionSpec, request: Request = REQUEST) -> dict[str, Tensor]:
    return attend(inputs.q, inputs.k, inputs.v, request, options, engine="triton")


@pytest.mark.parametrize(
    ("name", "length"),
    [(name, length) for name in VARIANTS for length in (1, 100)]
    + [(name, 63) for name in ("causal", "window", "padded left and right", "packed", "bfloat16")],
)
def test_forward_agrees_with_dense_float64(name, length, draw):
    inputs = draw(**spec(name, length))
    options = AttentionSpec(**inputs.options)
    expected = expected_of(inputs, options)
    check(result_of(inputs, options), expected, rounding=ROUNDING[inputs.q.dtype])


LAYOUTS = ("tokens before heads", "every second channel")


def spread(tensor: Tensor, layout: str) -> Tensor:
    """Copy a tensor into a larger one full of NaN, with other strides."""
    batch, heads, tokens, size = tensor.shape
    if layout == "tokens before heads":
        room = torch.full((batch, tokens + 5, heads + 1, size + 3), torch.nan, dtype=tensor.dtype)
        view = room[:, 2 : tokens + 2, :heads, :size].transpose(1, 2)
    else:
        room = torch.full((batch, heads, tokens, 2 * size), torch.nan, dtype=tensor.dtype)
        view = room[..., 1::2]
    view.copy_(tensor)
    return view


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["causal", "padded left and right"])
def test_any_layout_is_read_in_place(name, layout, draw):
    # Head sizes that are no powers of two, and a value size of its own, as in MLA.
    inputs = draw(**spec(name, 100) | {"size": 24, "value_size": 40, "dtype": torch.float16})
    options = AttentionSpec(**inputs.options)
    dense = expected_of(inputs, options)
    for field in ("q", "k", "v"):
        setattr(inputs, field, spread(getattr(inputs, field), layout))
    check(result_of(inputs, options), dense, rounding=ROUNDING[torch.float16])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
def test_what_padding_holds_does_not_matter(poison, draw):
    inputs = draw(**spec("padded left and right", 63))
    options = AttentionSpec(**inputs.options)
    dense = expected_of(inputs, options)
    padding = ~inputs.options["key_mask"]
    for tensor in (inputs.q, inputs.k, inputs.v):
        tensor.transpose(1, 2)[padding] = poison
    check(result_of(inputs, options), dense)


TILES = [
    Configuration(queries=64, keys=32, warps=4, stages=1),
    Configuration(queries=32, keys=64, warps=4, stages=1),
    Configuration(queries=64, keys=64, warps=4, stages=1, tma=True),
]


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("name", ["causal", "window", "packed", "fewer queries than keys", "sinks"])
def test_the_cut_into_tiles_does_not_matter_nor_is_memory_outside_touched(name, tiles, draw):
    inputs = draw(**spec(name, 100) | {"batch": 1, "heads": 2, "kv_heads": 1})
    inputs.options = {
        key: value[:2] if key == "sinks" else value for key, value in inputs.options.items()
    }
    options = AttentionSpec(**inputs.options)
    launch = Launch(inputs.q, inputs.k, inputs.v, options.fit(inputs.q, inputs.k))
    named = first_pass.arguments(launch, tiles, max_weight=True, entropy=True)
    assert named["TMA"] == tiles.tma
    outputs = ("z", "lse", "max_weight", "entropy")
    rooms = {}
    for output in outputs:
        # The interpreter does not check bounds: pages on both sides of an output show a stray.
        shape, count = named[output].shape, named[output].numel()
        rooms[output] = torch.full((count + 2048,), 7.0)
        rooms[output][1024:-1024] = torch.nan
        named[output] = rooms[output][1024:-1024].view(shape)
    grid = (-(-inputs.q.shape[2] // tiles.queries), 2, 1)
    attend_queries[grid](**named)
    for room in rooms.values():
        assert (room[:1024] == 7.0).all()
        assert (room[-1024:] == 7.0).all()
    expected = Request(stats=("lse", "max_weight", "entropy"))
    result = {output: named[output] for output in outputs}
    result["lse"] = result["lse"] / LOG2E
    check(result, expected_of(inputs, options, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("causal", [True, False])
def test_the_stock_forward_pass_gives_the_same(causal, dtype, draw):
    inputs = draw(100, dtype=dtype)
    options = AttentionSpec(causal=causal)
    panels = Panels(inputs.q, inputs.k, inputs.v, options.fit(inputs.q, inputs.k), REQUEST)
    chosen = [load(name) for name in ("z", *ROWS)]
    dense = expected_of(inputs, options)
    # torch rounds z to the type of q, k and v, and on a CPU its normaliser of bfloat16 is coarser.
    got = TritonEngine(panels, "stock").run(chosen)
    check(got, dense, rounding=2 * ROUNDING[dtype], slack=1e-4)


def test_normalisers_of_other_weights_are_noticed(draw):
    inputs = draw(100)
    launch = Launch(inputs.q, inputs.k, inputs.v, AttentionSpec().fit(inputs.q, inputs.k))
    lse = first_pass.run(launch).lse
    assert sdpa.norm_residual(launch, lse) < 1e-5
    lse[1, 2] += 0.01
    assert 5e-3 < sdpa.norm_residual(launch, lse) < 1e-2


def test_a_fixed_pattern_takes_the_place_of_the_weights(draw):
    length = 100
    inputs = draw(**spec("padded left and right", length))
    fixed = torch.rand(1, 4, length, length).tril() + torch.eye(length)
    fixed /= fixed.sum(dim=-1, keepdim=True)
    fixed[:, 1] = torch.nan
    fixed[:, 2, :40] = torch.nan
    # A fixed weight also takes the place of that of a key knocked out.
    gone = torch.zeros(1, 4, length)
    gone[..., 50] = -torch.inf
    options = AttentionSpec(edits=WeightEdits(pattern=fixed, key_bias=gone), **inputs.options)
    check(result_of(inputs, options), expected_of(inputs, options))


MUTANTS = {
    "a query sees the next key": ("high", 1, "causal"),
    "a query misses its own key": ("high", -1, "causal"),
    "the window is one key too wide": ("low", -1, "window"),
    "distances are off by one": ("shift", 1, "alibi"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_terms_are_noticed(mutant, draw, monkeypatch):
    field, step, name = MUTANTS[mutant]
    inputs = draw(**spec(name, 63))
    options = AttentionSpec(**inputs.options)
    dense = expected_of(inputs, options)
    right = Launch.terms.func  # type: ignore[attr-defined]

    def wrong(launch: Launch) -> Terms:
        terms = right(launch)
        return terms._replace(**{field: getattr(terms, field) + step})

    monkeypatch.setattr(Launch, "terms", property(wrong))
    with pytest.raises(AssertionError, match="off by"):
        check(result_of(inputs, options), dense)


def test_results_are_the_same_twice(draw):
    inputs = draw(100)
    check_same(result_of(inputs, AttentionSpec()), result_of(inputs, AttentionSpec()))


def test_heads_that_do_not_fit_are_refused(draw):
    inputs = draw(3, size=129)
    with pytest.raises(ResourceLimit, match=r"q: head size 129.*engine='panels'"):
        result_of(inputs, AttentionSpec())


def test_statistics_without_a_kernel_come_from_the_panels(draw):
    inputs = draw(40)
    expected = Request(stats=("entropy", "column_norm", "topk"))
    assert ways(expected.stats) == {"entropy": "forward", "column_norm": "panels", "topk": "topk"}
    check(
        result_of(inputs, AttentionSpec(), expected), expected_of(inputs, AttentionSpec(), expected)
    )
