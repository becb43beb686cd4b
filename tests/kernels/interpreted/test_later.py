"""The passes over the weights, given normalisers of the dense float64 oracle."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_inputs import CHOICES, check_same, check_within, noise, spec
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, WeightEdits, attend_dense
from headscope.kernels.triton import bands, cells, column_pass, gather_pass, row_pass, topk_pass
from headscope.kernels.triton.columns import reduce_columns
from headscope.kernels.triton.configuration import Configuration
from headscope.kernels.triton.launch import DEAD, Launch, Terms
from headscope.kernels.triton.plan import declared
from headscope.kernels.triton.rows import reduce_rows

PASSES = {"columns": column_pass, "rows": row_pass, "gathers": gather_pass, "topk": topk_pass}
SLOW = frozenset({"effective_span"})
"""A pass for each digit of the longest distance."""
ALL = frozenset().union(*map(declared, PASSES))


class Case:
    """An attention call, what the oracle says of it, and how the passes are run on it."""

    def __init__(self, draw: Any, names: frozenset[str], **options: Any) -> None:
        self.inputs = draw(**options)
        self.spec = AttentionSpec(**self.inputs.options)
        if self.spec.sigmoid:
            names = frozenset(name for name in names if not statistics.load(name).distribution)
        self.names = names
        q, k, v, asked = self.inputs
        extra = ("pattern", "topk") if self.spec.sigmoid else ("pattern", "topk", "lse")
        parameters = {key: getattr(asked, key) for key in vars(asked) if key != "stats"}
        self.request = Request(stats=(*names, *extra), **parameters)
        self.dense = attend_dense(q, k, v, self.request, self.spec)
        self.launch = Launch(q, k, v, self.spec.fit(q, k))
        # Without any key there is no largest weight.
        self.dead = self.dense["topk"][..., 0].isnan()
        if self.spec.sigmoid:
            lse = torch.zeros(self.dead.shape)
        else:
            lse = (self.dense["lse"] * math.log2(math.e)).float()
        self.lse = lse.masked_fill(self.dead, DEAD)

    def run(self, configuration: Configuration | None = None) -> dict[str, Tensor]:
        """Run every pass that has one of the names."""
        result: dict[str, Tensor] = {}
        for name, each in PASSES.items():
            expected = sorted(self.names & declared(name))
            if each is gather_pass:
                result |= each.run(self.launch, self.lse, expected, self.request)
            elif expected:
                result |= each.run(self.launch, self.lse, expected, self.request, configuration)
        return result

    def check(self, found: dict[str, Tensor]) -> None:
        """Fail unless results agree with the oracle, NaN in the same places."""
        assert set(found) == self.names
        logit = 1.0
        if "lse" in self.dense and not self.dead.all():
            logit = max(self.dense["lse"][~self.dead].abs().max().item(), 1.0)
        for name in sorted(found):
            got, expected = found[name], self.dense[name]
            statistic = statistics.load(name)
            if statistic.finish is not None:
                got = statistic.finish(got, self.launch.visibility, self.request)
            if statistic.by_query:
                dead = self.dead.view(*self.dead.shape, *[1] * (got.ndim - 3))
                got = got.masked_fill(dead, statistic.empty)
            near = 1e-6 + logit * 2**-22
            if name in CHOICES:
                assert (got.dtype, got.shape) == (torch.float32, expected.shape)
                assert torch.equal(got.isnan(), expected.isnan()), f"{name}: NaN elsewhere"
                CHOICES[name](got, self.dense, self.inputs, near)
            else:
                check_within(name, got, expected, near)


FEWER = {"batch": 1, "heads": 2, "kv_heads": 1}
SHORT: dict[str, dict[str, Any]] = {
    "softcap": FEWER,
    "fewer queries in a window": FEWER,
    "padded left and right": {"heads": 2},
    "bidirectional padded": {"heads": 2, "kv_heads": 1},
    "holes in the keys": {"heads": 2},
    "packed and padded": {"heads": 2, "kv_heads": 1},
    "alibi, bidirectional": {"batch": 1},
    "bias that hides": {"heads": 2, "kv_heads": 1},
    "sinks": {"batch": 1},
    "float16": FEWER,
}


@pytest.mark.parametrize("name", SHORT)
def test_later_passes_agree_with_dense_float64(name, draw):
    case = Case(draw, ALL - SLOW, **spec(name, 100) | SHORT[name])
    case.check(case.run())


@pytest.mark.parametrize("name", ["window", "bidirectional"])
def test_effective_span_agrees_with_dense_float64(name, draw):
    case = Case(draw, SLOW, **spec(name, 100) | FEWER)
    case.check(case.run())


def edits() -> WeightEdits:
    gone = noise(1, 2, 300)
    gone[..., 7] = -torch.inf
    spans = torch.arange(300).div(40, rounding_mode="floor")[None] % 4 - 1
    return WeightEdits(
        key_bias=gone, span_bias=noise(2, 3, 3), query_spans=spans, key_spans=spans,
        first=torch.tensor([2, 5]), recent=torch.tensor([30, 0]),
        temperature=torch.tensor([0.5, 2.0]),
    )  # fmt: skip


# Several tiles of the kernels, so that some are whole; cells of every kind.
LONG: dict[str, dict[str, Any]] = {
    "causal": {"keys": 600, "request": {"tile": 200, "clip": None}},
    "bidirectional window, narrow": {
        "causal": False, "window": 200, "keys": 330, "request": {"tile": 7},
        "dtype": torch.bfloat16,
    },
    "more queries than keys": {"keys": 150, "request": {"tile": 64, "k": 40, "first": 90}},
    "sigmoid": {"sigmoid": True, "keys": 290, "causal": False},
    "edits": {"edits": edits(), "heads": 2, "request": {"tile": 128, "horizon": (100, 150)}},
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_texts_of_several_tiles(name, draw):
    options = {"queries": 300, "batch": 1, "heads": 1, "kv_heads": 1, "size": 24, **LONG[name]}
    case = Case(draw, ALL - SLOW, **options)
    case.check(case.run())


TILES = [Configuration(32, 64, warps=4, stages=1), Configuration(64, 32, warps=4, stages=1)]


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("tile", [1, 7, 16, 64, 100])
def test_the_cut_into_tiles_does_not_matter(tile, tiles, draw):
    names = column_pass.DENSE if tile < 100 else (ALL - SLOW - declared("gathers"))
    case = Case(draw, names, queries=100, batch=1, heads=1, kv_heads=1, request={"tile": tile})
    case.check(case.run(tiles))


def test_cells_hold_every_token_once():
    for tile in (*range(1, 70), 96, 100, 127, 128, 129, 131, 200, 256, 300):
        cut = cells.cells_of(tile, 64)
        assert cut.slots <= 64
        starts = cut.starts(1000, 64, torch.device("cpu")).tolist()
        held = [
            min(cut.step, cut.tile - part * cut.step)
            for _ in range(-(-1000 // tile))
            for part in range(cut.parts)
        ]
        assert min(held) >= 1
        assert sum(held) == -(-1000 // tile) * tile
        per_block = 64 // cut.slots
        ends = [min(sum(held[: at + per_block]), 1000) for at in range(0, len(held), per_block)]
        assert starts[1:] == ends[:-1]


def test_memory_outside_the_outputs_is_not_touched(draw):
    case = Case(draw, column_pass.DENSE, queries=70, batch=1, heads=2, request={"tile": 7})
    tiles = Configuration(32, 64, warps=4, stages=1)
    named, outputs, _ = column_pass.arguments(case.launch, case.lse, case.names, 7, tiles)
    rooms = {}
    for name, output in outputs.items():
        # The interpreter does not check bounds: pages on both sides of an output show a stray.
        rooms[name] = torch.full((output.numel() + 2048,), 7.0)
        inside = rooms[name][1024:-1024].view(output.shape)
        inside.copy_(output)
        outputs[name] = inside
    named["sums_out"], named["peaks_out"] = outputs["received"], outputs["received_max"]
    pooled = {"sums": outputs["pooled_mean"], "peaks": outputs["pooled_max"]}
    named["pooled"] = named["pooled"]._replace(**pooled)
    reduce_columns[(named["bounds"].shape[1], 2, 1)](**named)
    case.check(outputs)

    case = Case(draw, frozenset({"value_mass"}), queries=70, batch=1, heads=2)
    room = torch.full((140 + 2048,), 7.0)
    norms = row_pass.norms_of(case.launch)
    value = room[1024:-1024].view(1, 2, 70)
    expected = row_pass.RowOutputs(value=value, norms=norms)
    reduce_rows[(3, 2, 1)](**row_pass.arguments(case.launch, case.lse, expected, tiles))
    case.check({"value_mass": value})
    for each in (*rooms.values(), room):
        assert (each[:1024] == 7.0).all()
        assert (each[-1024:] == 7.0).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_padding_holds_does_not_matter(poison, draw):
    case = Case(draw, ALL - SLOW, **spec("padded left and right", 63))
    padding = ~case.spec.key_mask
    for tensor in (case.inputs.q, case.inputs.k, case.inputs.v):
        tensor.transpose(1, 2)[padding] = poison
    case.check(case.run())


def test_crowded_rows_are_ranked_in_full(draw):
    # 31 slots of every tile hold larger logits than the 32nd largest group: 93 candidates.
    options = {"queries": 3, "keys": 400, "batch": 1, "heads": 2, "kv_heads": 1}
    case = Case(draw, declared("topk"), **options, request={"k": 32})
    k = case.inputs.k
    case.inputs.q[..., 0] = 4.0
    k[..., 0] = torch.where(torch.arange(400) % 128 < 31, 6.0, -6.0) + 0.1 * noise(400)
    case.dense = attend_dense(case.inputs.q, k, case.inputs.v, case.request, case.spec)
    case.lse = (case.dense["lse"] * math.log2(math.e)).float()
    tiles = Configuration(128, 128, warps=4, stages=1)
    named = topk_pass.arguments(case.launch, 0, slice(0, 2), 32, tiles)
    topk_pass.select_top_rows[(1, 2)](**named)
    assert (named["reached"] > topk_pass.ROOM).all()
    case.check(case.run())


def test_equal_weights_are_no_crowd(draw):
    case = Case(draw, declared("topk"), queries=300, batch=1, heads=1, kv_heads=1, sigma=0.0)
    tiles = Configuration(128, 128, warps=4, stages=1)
    named = topk_pass.arguments(case.launch, 0, slice(0, 1), 5, tiles)
    topk_pass.select_top_rows[(3, 1)](**named)
    # The first queries see fewer keys than are asked for: all of them count.
    assert (named["reached"] == torch.tensor([1, 2, 3, 4] + 296 * [0])).all()
    case.check(case.run())


def test_results_are_the_same_twice(draw):
    case = Case(draw, ALL - SLOW, queries=100, batch=1, heads=2)
    check_same(case.run(), case.run())


WIDELY = ("received", "pooled_mean", "distance_hist", "value_mass", "span_mass", "topk")
MUTANTS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "a query sees the next key": ("high", 1, (*WIDELY, "distance")),
    # Its own key is at distance 0.
    "a query misses its own key": ("high", -1, WIDELY),
    "distances are off by one": ("shift", 1, ("distance", "distance_hist")),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_terms_are_noticed(mutant, draw, monkeypatch):
    field, step, noticing = MUTANTS[mutant]
    right = Launch.terms.func  # type: ignore[attr-defined]

    def wrong(launch: Launch) -> Terms:
        terms = right(launch)
        return terms._replace(**{field: getattr(terms, field) + step})

    monkeypatch.setattr(Launch, "terms", property(wrong))
    case = Case(draw, frozenset(noticing), queries=63, batch=1)
    result = case.run()
    for name in noticing:
        case.names = frozenset({name})
        with pytest.raises(AssertionError, match=r"off by|NaN elsewhere"):
            case.check({name: result[name]})


def with_room(tensor: Tensor) -> Tensor:
    """Copy the tensor to the start of a longer storage, whose rest is known and finite."""
    room = torch.ones(tensor.numel() + 128 * tensor.shape[-1])
    room[: tensor.numel()] = tensor.flatten()
    return room[: tensor.numel()].view(tensor.shape)


@pytest.mark.filterwarnings("ignore:overflow")
def test_tiles_that_are_cut_but_taken_for_whole_are_noticed(draw, monkeypatch):
    names = frozenset({"received", "distance"})
    case = Case(draw, names, queries=300, batch=1, heads=1, kv_heads=1)
    # The mutants read behind the last query and key: there must be numbers of ours.
    roomy = {name: with_room(getattr(case.launch, name)) for name in "qkv"}
    case.launch = replace(case.launch, **roomy)
    case.lse = with_room(case.lse)
    case.check(case.run())
    columns, rows = column_pass.bound_queries, Launch.bounds

    def early(*given: Any) -> Tensor:
        bounds = columns(*given)
        bounds[..., 1] = bounds[..., 0]
        return bounds

    def late(launch: Launch, *given: int) -> Tensor:
        bounds = rows(launch, *given)
        bounds[..., 2] = torch.maximum(bounds[..., 3] // 128 * 128, bounds[..., 1])
        return bounds

    monkeypatch.setattr(column_pass, "bound_queries", early)
    monkeypatch.setattr(Launch, "bounds", late)
    result = case.run()
    for name in names:
        case.names = frozenset({name})
        with pytest.raises(AssertionError, match=r"off by|NaN elsewhere"):
            case.check({name: result[name]})


def test_rows_sum_to_one_and_a_band_is_part_of_them(draw):
    case = Case(draw, frozenset({"recent_mass"}), queries=100, batch=1, heads=2)
    mass = row_pass.run(case.launch, case.lse, (row_pass.MASS,), case.request)[row_pass.MASS]
    torch.testing.assert_close(mass, torch.ones(1, 2, 100), rtol=0, atol=1e-6)
    band = bands.narrow(case.launch, 0, case.request.recent - 1)
    part = row_pass.run(band, case.lse, (row_pass.MASS,), case.request)[row_pass.MASS]
    case.check({"recent_mass": part})
    with pytest.raises(AssertionError, match="off by"):
        case.check({"recent_mass": mass})


def test_three_bfloat16_pieces_make_a_float32():
    # What the kernel for spans relies on, where the interpreter takes another way.
    p = torch.cat((torch.rand(10000), torch.logspace(-30, 0, 1000)))
    top = p.bfloat16()
    middle = (p - top.float()).bfloat16()
    bottom = (p - top.float() - middle.float()).bfloat16()
    whole = top.double() + middle.double() + bottom.double()
    assert ((whole - p.double()).abs() <= p.double() * 2**-24).all()
