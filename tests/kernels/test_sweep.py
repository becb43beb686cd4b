"""The compiled sweep: torch's numbers in every shape, NaN kept, mistakes in the C text noticed."""

import ctypes
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_inputs import check_same as check_results
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, attend, attend_dense
from headscope.kernels.compiled import blas, library, operands, sweep
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels import softmax
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.scratch import Scratch


@pytest.fixture
def rebuilt() -> Iterator[None]:
    """Build again in this test, and once more after it."""
    library.library.cache_clear()
    yield
    library.library.cache_clear()


# A processor without a matrix unit has one way only.
WAYS = ("unit", "blas") if library.library().pack else ("blas",)
LEAST = {"unit": 1, "blas": 1 << 30}
SWEEP_ONLY = tuple(name for name in statistics.names() if statistics.load(name).reductions)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Multiply on the matrix unit, then with BLAS."""
    monkeypatch.setattr(operands, "LEAST_ROWS", LEAST[request.param])
    return str(request.param)


def check_same(inputs: Any, rtol: float = 2e-6) -> None:
    """Fail unless the sweep gives what torch gives; of equal weights either key will do."""
    options = AttentionSpec(**inputs.options)
    swept = attend(*inputs, options, engine="compiled")
    panels = attend(*inputs, options, engine="panels")
    assert set(swept) == {"z", *inputs.request.stats}
    for name, values in panels.items():
        if name in ("topk_key", "effective_span", "span_without_first"):
            assert torch.equal(swept[name].isnan(), values.isnan())
            assert ((swept[name] - values).nan_to_num() != 0).float().mean() < 2e-3, name
        else:
            torch.testing.assert_close(
                swept[name], values, rtol=rtol, atol=2e-6, equal_nan=True,
                msg=lambda m, n=name: n + m,
            )  # fmt: skip


def test_statistics_declare_what_the_sweep_fills_in():
    declared = {name for each in statistics.names() for name in statistics.load(each).reductions}
    assert declared == sweep.REDUCTIONS
    assert all(hasattr(Panel, name) for name in declared)


def test_torch_makes_no_weights_where_the_sweep_does(draw, monkeypatch):
    inputs = draw(100)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("torch was asked")

    monkeypatch.setattr(softmax.Softmax, "fill", fail)
    attend(*inputs, engine="compiled")
    attend(*inputs)
    with pytest.raises(ZeroDivisionError):
        attend(*inputs, engine="panels")


def test_nothing_that_the_sweep_fills_in_is_computed_again(draw, monkeypatch):
    def fail(self: Panel) -> Tensor:
        raise ZeroDivisionError("computed on torch")

    inputs = draw(100, request={"stats": SWEEP_ONLY})
    for name in sweep.REDUCTIONS:
        monkeypatch.setattr(Panel.__dict__[name], "func", fail)
    attend(*inputs, engine="compiled")
    with pytest.raises(ZeroDivisionError):
        attend(*inputs, engine="panels")


@pytest.mark.parametrize("length", [2, 15, 16, 17, 31, 127, 128, 129, 300])
@pytest.mark.parametrize("tile", [1, 3, 16, 50, 130])
def test_the_sweep_and_torch_agree_at_odd_lengths(length, tile, draw, way):
    clip = None if tile == 3 else 9
    check_same(draw(length, request={"tile": tile, "k": min(tile, 64), "clip": clip}))
    check_same(draw(length, length + tile, causal=False, request={"tile": tile}))
    check_same(draw(length, length + 40, window=33, request={"tile": tile}))


@pytest.mark.parametrize("tile", [16, 40, 130])
def test_sharp_logits_are_made_exactly_a_few_rows_at_a_time(tile, draw, agree, way):
    few = tuple(
        name
        for name in statistics.names()
        if name not in ("topk_key", "effective_span", "span_without_first")
    )
    for options in ({}, {"window": 50}, {"softcap": 200.0}):
        inputs = draw(300, request={"tile": tile, "stats": few})
        # Some rows of the later tiles, so that pieces with and without them take turns.
        inputs.q[:, :, [70, 200, 290]] *= 64.0
        spec = AttentionSpec(**options)
        dense = attend_dense(*inputs, spec)
        largest = float(dense["lse"].abs().max())
        for stats in (few, SWEEP_ONLY):
            inputs.request = replace(inputs.request, stats=stats)
            swept = attend(*inputs, spec, engine="compiled")
            for name in CHECKED:
                agree(name, swept[name], dense[name], logit=largest)


@pytest.mark.parametrize("size", [1, 16, 31, 33, 80, 192])
def test_the_sweep_and_torch_agree_at_odd_sizes_of_heads(size, draw, way):
    check_same(draw(70, 91, size=size, value_size=200 - size))
    check_same(draw(45, heads=6, kv_heads=1, size=size, value_size=size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_multiplied_as_the_same_numbers_in_float32(dtype, draw, way):
    halves = draw(150, size=24, sigma=3.0, dtype=dtype)
    whole = (halves.q.float(), halves.k.float(), halves.v.float(), halves.request)
    result, expected = (attend(*given, engine="compiled") for given in (halves, whole))
    check_results(result, expected, 3e-6, leave=("topk_key",))


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_the_matrix_unit_is_as_exact_as_blas(sigma, draw, monkeypatch):
    inputs = draw(60, 6000, heads=2, size=64, value_size=64, sigma=sigma)
    inputs.request = Request(stats=("lse", "entropy", "received"))
    spec = AttentionSpec(causal=False)
    dense = attend_dense(*inputs, spec)
    errors = {}
    for way in WAYS:
        monkeypatch.setattr(operands, "LEAST_ROWS", LEAST[way])
        for name, values in attend(*inputs, spec, engine="compiled").items():
            errors[way, name] = float((values - dense[name]).norm() / dense[name].norm())
    for (way, name), error in errors.items():
        assert error < 5e-7 * sigma, (way, name)
        assert error < 1.5 * errors["blas", name] + 1e-8, (way, name)


def test_the_sweep_and_torch_agree_over_thousands_of_keys(draw, way):
    # The order of float32 sums shows in masses of a thousand keys.
    short = tuple(name for name in statistics.names() if name != "pattern")
    check_same(draw(40, 5000, kv_heads=1, request={"k": 64, "stats": short}), rtol=1e-5)
    check_same(draw(40, 5000, sigma=8.0, request={"k": 8, "stats": short}), rtol=1e-5)


@pytest.mark.parametrize("window", [None, 700])
def test_rows_of_a_panel_pass_the_products_a_few_at_a_time(window, draw, way):
    # 256 rows of 3001 keys are more than the cache holds.
    few = ("lse", "entropy", "received", "pooled_mean", "distance_hist", "first_mass")
    inputs = draw(300, 3001, kv_heads=1, request={"stats": few})
    check_same(inputs, rtol=1e-5)
    inputs.options["window"] = window
    check_same(inputs, rtol=1e-5)


def test_without_a_product_to_call_torch_multiplies(draw, monkeypatch):
    inputs = draw(100)
    monkeypatch.setattr(operands, "LEAST_ROWS", LEAST["blas"])
    monkeypatch.setattr(operands.blas, "gemm", lambda: None)
    monkeypatch.setattr(Panel.__dict__["attn_output"], "func", lambda panel: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attend(*inputs, engine="compiled")
    monkeypatch.undo()
    usual = attend(*inputs, engine="compiled")
    monkeypatch.setattr(operands, "LEAST_ROWS", LEAST["blas"])
    monkeypatch.setattr(operands.blas, "gemm", lambda: None)
    check_results(attend(*inputs, engine="compiled"), usual, 2e-6, leave=("topk_key",))


def test_a_product_that_is_wrong_is_not_called():
    def half(*given: Any) -> None:
        given[5]._obj.value = 0.5
        blas_product(*given)

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    blas_product = ctypes.CDLL(str(library)).sgemm_
    assert blas.agrees(blas_product)
    assert not blas.agrees(half)


def test_leaders_among_equal_weights_are_different_keys(draw):
    inputs = draw(700, request={"k": 8, "stats": ("topk", "topk_key")})
    inputs.q = inputs.q * 0.0
    result = attend(*inputs, engine="compiled")
    rows = result["topk_key"][:, :, 7:]
    assert ((rows >= 0) & (rows <= torch.arange(7, 700)[:, None])).all()
    assert (rows.sort(dim=-1).values.diff(dim=-1) > 0).all()
    seen = torch.arange(8, 701).view(1, 1, -1, 1).expand_as(rows)
    torch.testing.assert_close(result["topk"][:, :, 7:], 1 / seen)


@pytest.mark.parametrize("place", [0, 5, 63, 64])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_a_nan_shows_where_it_shows_on_torch(which, place, draw, way):
    stats = ("lse", "max_weight", "entropy", "distance", "distance_hist", "received", "pooled_max")
    inputs = draw(70, request={"stats": stats})
    getattr(inputs, which)[1, :, place] = torch.nan
    seeing = slice(place, place + 1 if which == "q" else None)
    swept = attend(*inputs, engine="compiled")
    panels = attend(*inputs, engine="panels")
    for name, values in panels.items():
        if name == "z":
            # 0 · NaN is NaN: rows that are multiplied together share it, and those are fewer here.
            assert values.isnan()[swept[name].isnan()].all()
            assert swept[name][1, :, seeing].isnan().any(dim=-1).all()
        elif statistics.load(name).by_query:
            assert torch.equal(swept[name].isnan(), values.isnan()), name
        else:
            # The sweep keeps the weights of hidden keys at 0, even in a row of NaN.
            assert values.isnan()[swept[name].isnan()].all(), name
    assert swept["received"][1, :, : place + 1].isnan().all() == (which != "v")
    assert swept["pooled_max"][1, :, place // 16, 0].isnan().all() == (which != "v")
    assert swept["z"][1, :, place].isnan().all()
    assert not swept["z"][0].isnan().any()


def test_what_memory_held_before_does_not_matter(draw, monkeypatch, way):
    inputs = draw(150, sigma=8.0)
    usual = attend(*inputs, engine="compiled")
    take = Scratch.take
    # All bits set is NaN, and -1 among whole numbers.
    monkeypatch.setattr(Scratch, "take", lambda *given: take(*given).fill_(255))
    check_results(attend(*inputs, engine="compiled"), usual)


def test_the_sweep_writes_inside_its_memory(draw, monkeypatch, way):
    guard = 64
    kept: list[Tensor] = []

    def piece(self: Scratch, name: str, count: int) -> Tensor:
        memory = torch.full((count + 2 * guard,), 7, dtype=torch.uint8)
        kept.append(memory)
        return memory[guard:-guard]

    monkeypatch.setattr(Scratch, "take", piece)
    for length in (1, 13, 100, 257):
        for stats in (tuple(statistics.names()), SWEEP_ONLY):
            inputs = draw(length, request={"stats": stats})
            attend(*inputs, engine="compiled")
            attend(*inputs, AttentionSpec(window=9), engine="compiled")
    assert len(kept) > 30
    for memory in kept:
        assert (memory[:guard] == 7).all()
        assert (memory[-guard:] == 7).all()


def test_memory_is_used_again_and_never_by_two_calls_at_once():
    with Scratch.lend() as first, Scratch.lend() as second:
        assert first is not second
        place = first.take("rows", 1000).data_ptr()
        assert place % 64 == 0
        assert first.take("rows", 500).data_ptr() == place != second.take("rows", 10).data_ptr()
        parts = first.share("results", {"a": (2, 3), "b": (5,)})
        assert {name: tuple(each.shape) for name, each in parts.items()} == {"a": (2, 3), "b": (5,)}
        assert parts["a"].data_ptr() + 64 == parts["b"].data_ptr()
    with Scratch.lend() as again:
        assert again in (first, second)


def test_statistics_read_no_more_than_they_declare(draw):
    # Weights that nobody asked for have no data, and reading them fails.
    for name in SWEEP_ONLY:
        attend(*draw(100, request={"stats": (name,)}), engine="compiled")


SINKS = {"sinks": torch.ones(4)}
MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "row_end": ("+ 1", {}),
    "window_start": ("- 1", {"window": 20}),
    "padding": ("+ 7", {"padded": True}),
    "bin_end": ("- 1", {}),
    "own_key": ("- 1", {"causal": False}),
    "sink_entropy": ("0 *", SINKS),
    "sink_mass": ("0 *", SINKS),
    "tile_end": ("- 1", {}),
    "topk_bound": ("+ 1e-6f", {}),
    "value_head": ("0 *", {}),
    "key_head": ("0 *", {}),
    "exponential": ("- 3e-5", {}),
    "topk_weights": ("/ factor", {}),
    "first_keys": ("- 1", {}),
    "behind_row": ("0 &&", {}),
    "amx_value_head": ("0 *", {}),
    "amx_key_head": ("0 *", {}),
    "amx_parts": ("- 1", {}),
    "amx_third_parts": ("- 1", {}),
    "amx_steps": ("- TERMS + 1", {}),
    "amx_window": ("- TERMS", {"window": 50}),
    "amx_scale": ("1.0f + 0 *", {}),
    "amx_terms": ("+ (t > 200)", {}),
}
"""What takes the place of the C comment ``/* MUTANT name */``, and the call that must notice."""
ANCHOR = r"/\* MUTANT (\w+) \*/"
CHECKED = (
    "z", "lse", "entropy", "first_mass", "distance_hist", "received", "pooled_mean", "topk",
)  # fmt: skip
SOURCES = sorted(library.SOURCE.parent.glob("*.[ch]"))


def test_every_anchor_has_a_mutant():
    anchors = [name for file in SOURCES for name in re.findall(ANCHOR, file.read_text())]
    assert sorted(anchors) == sorted(MUTANTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [name for name in MUTANTS if "unit" in WAYS or not name.startswith("amx_")]
)
def test_a_mistake_in_the_text_is_noticed(mutant, draw, agree, rebuilt, tmp_path, monkeypatch):
    wrong, options = MUTANTS[mutant]
    folder = tmp_path / "text"
    folder.mkdir()
    for file in SOURCES:
        text = file.read_text().replace(f"/* MUTANT {mutant} */", wrong)
        (folder / file.name).write_text(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "SOURCE", folder / "sweep.c")
    monkeypatch.setattr(library, "agrees", lambda run: True)
    monkeypatch.setattr(library, "agrees_with_torch", lambda run, pack: True)
    way = "unit" if mutant.startswith("amx_") else "blas"
    monkeypatch.setattr(operands, "LEAST_ROWS", LEAST[way])
    options = dict(options)
    inputs = draw(300, request={"k": 3})
    if options.pop("padded", False):
        options["key_mask"] = torch.arange(300).expand(2, -1) > 9
    spec = AttentionSpec(**options)
    dense = attend_dense(*inputs, spec)
    swept = attend(*inputs, spec, engine="compiled")
    with pytest.raises(AssertionError):  # noqa: PT012
        for name in CHECKED:
            agree(name, swept[name], dense[name])


@pytest.mark.unchecked_signatures
def test_engines_that_cannot_be_had_are_refused(draw):
    inputs = draw(20, request={"stats": ("max_weight",)})
    with pytest.raises(InvalidInput, match=r"engine: 'fast'; choose from auto, panels, compiled"):
        attend(*inputs, engine="fast")
    rows = AttentionSpec(sigmoid=True)
    with pytest.raises(InvalidInput, match="no sigmoid attention; or use engine='auto'"):
        attend(*inputs, rows, engine="compiled")
    check_results(attend(*inputs, rows), attend(*inputs, rows, engine="panels"))
    with pytest.raises(InvalidInput, match="it computes in float32; or use engine='auto'"):
        library.choose("compiled", AttentionSpec(), torch.float64, torch.device("cpu"))
    assert library.choose("auto", AttentionSpec(), torch.float64, torch.device("cpu")) is None


def test_a_statistic_may_read_logits_that_the_sweep_overwrote(draw, monkeypatch):
    for sigma in (1.0, 64.0):
        inputs = draw(140, sigma=sigma, request={"stats": ("lse",)})
        seen: dict[str, list[Tensor]] = {"compiled": [], "panels": []}
        for engine, result in seen.items():

            def lse(panel: Panel, result: list[Tensor] = result) -> Tensor:
                result.append(panel.logits.clone())
                return panel.max_logit

            monkeypatch.setattr(Panel, "lse", property(lse))
            attend(*inputs, engine=engine)
        both = [torch.cat([each.flatten() for each in result]) for result in seen.values()]
        assert len(both[0]) > 140 * 70
        torch.testing.assert_close(*both, rtol=1e-6, atol=1e-6)


def test_requests_with_more_leaders_than_the_sweep_holds(draw):
    check_same(draw(200, request={"k": sweep.LARGEST_K + 1}))
    assert Request(stats=(), k=sweep.LARGEST_K + 1).k == 65
