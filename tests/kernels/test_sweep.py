"""The compiled sweep: torch's numbers in every shape, NaN kept, mistakes in the C text noticed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention import attend
from headscope.kernels.cpu import blas, logits, sweep, sweep_call
from headscope.kernels.cpu.panel import Panel
from headscope.kernels.dense import attend_dense
from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.kernels.variant import Variant


@pytest.fixture
def rebuilt() -> Iterator[None]:
    """Build again in this test, and once more after it."""
    sweep.library.cache_clear()
    yield
    sweep.library.cache_clear()


def check_same(inputs: Any, rtol: float = 2e-6) -> None:
    """Fail unless the sweep gives what torch gives; of equal weights either key will do."""
    options = Variant(**inputs.options)
    swept = attend(*inputs, options, engine="compiled")
    panels = attend(*inputs, options, engine="panels")
    assert set(swept) == {"z", *inputs.request.stats}
    for name, values in panels.items():
        if name in ("topk_key", "effective_span"):
            assert torch.equal(swept[name].isnan(), values.isnan())
            assert ((swept[name] - values).nan_to_num() != 0).float().mean() < 2e-3, name
        else:
            torch.testing.assert_close(
                swept[name],
                values,
                rtol=rtol,
                atol=2e-6,
                equal_nan=True,
                msg=lambda m, n=name: n + m,
            )


def test_statistics_declare_what_the_sweep_fills_in() -> None:
    declared = {name for each in statistics.names() for name in statistics.load(each).reductions}
    assert declared == sweep.REDUCTIONS
    assert all(hasattr(Panel, name) for name in declared)


def test_torch_makes_no_weights_where_the_sweep_does(
    draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(100)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("torch was asked")

    monkeypatch.setattr(logits.Logits, "softmax", fail)
    attend(*inputs, engine="compiled")
    attend(*inputs)
    with pytest.raises(ZeroDivisionError):
        attend(*inputs, engine="panels")


def test_nothing_that_the_sweep_fills_in_is_computed_again(
    draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Panel) -> Tensor:
        raise ZeroDivisionError("computed on torch")

    inputs = draw(100, request={"stats": tuple(sweep_only())})
    for name in sweep.REDUCTIONS:
        monkeypatch.setattr(Panel.__dict__[name], "func", fail)
    attend(*inputs, engine="compiled")
    with pytest.raises(ZeroDivisionError):
        attend(*inputs, engine="panels")


def sweep_only() -> list[str]:
    return [name for name in statistics.names() if statistics.load(name).reductions]


@pytest.mark.parametrize("length", [2, 15, 16, 17, 31, 127, 128, 129, 300])
@pytest.mark.parametrize("tile", [1, 3, 16, 50, 130])
def test_the_sweep_and_torch_agree_at_odd_lengths(length: int, tile: int, draw: Any) -> None:
    clip = None if tile == 3 else 9
    check_same(draw(length, request={"tile": tile, "k": min(tile, 64), "clip": clip}))
    check_same(draw(length, length + tile, causal=False, request={"tile": tile}))


def test_the_sweep_and_torch_agree_over_thousands_of_keys(draw: Any) -> None:
    # The order of float32 sums shows in masses of a thousand keys.
    short = tuple(name for name in statistics.names() if name != "pattern")
    check_same(draw(40, 5000, kv_heads=1, request={"k": 64, "stats": short}), rtol=1e-5)
    check_same(draw(40, 5000, sigma=8.0, request={"k": 8, "stats": short}), rtol=1e-5)


@pytest.mark.parametrize("window", [None, 700])
def test_rows_of_a_panel_pass_the_products_a_few_at_a_time(window: int | None, draw: Any) -> None:
    # 256 rows of 3001 keys are more than the cache holds.
    few = ("lse", "entropy", "received", "pooled_mean", "distance_hist", "first_mass")
    inputs = draw(300, 3001, kv_heads=1, request={"stats": few})
    check_same(inputs, rtol=1e-5)
    inputs.options["window"] = window
    check_same(inputs, rtol=1e-5)


def test_without_a_product_to_call_torch_multiplies(
    draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(100)
    monkeypatch.setattr(sweep_call.blas, "gemm", lambda: None)
    monkeypatch.setattr(Panel.__dict__["mixed"], "func", lambda panel: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attend(*inputs, engine="compiled")
    monkeypatch.undo()
    usual = attend(*inputs, engine="compiled")
    monkeypatch.setattr(sweep_call.blas, "gemm", lambda: None)
    for name, values in attend(*inputs, engine="compiled").items():
        if name != "topk_key":
            torch.testing.assert_close(values, usual[name], rtol=2e-6, atol=2e-6, equal_nan=True)


def test_a_product_that_is_wrong_is_not_called() -> None:
    def half(*given: Any) -> None:
        given[5]._obj.value = 0.5
        blas_product(*given)

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    blas_product = ctypes.CDLL(str(library)).sgemm_
    assert blas.agrees(blas_product)
    assert not blas.agrees(half)


def test_leaders_among_equal_weights_are_different_keys(draw: Any) -> None:
    inputs = draw(700, request={"k": 8, "stats": ("topk", "topk_key")})
    inputs.q = inputs.q * 0.0
    found = attend(*inputs, engine="compiled")
    rows = found["topk_key"][:, :, 7:]
    assert ((rows >= 0) & (rows <= torch.arange(7, 700)[:, None])).all()
    assert (rows.sort(dim=-1).values.diff(dim=-1) > 0).all()
    seen = torch.arange(8, 701).view(1, 1, -1, 1).expand_as(rows)
    torch.testing.assert_close(found["topk"][:, :, 7:], 1 / seen)


@pytest.mark.parametrize("place", [0, 5, 63, 64])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_a_nan_shows_where_it_shows_on_torch(which: str, place: int, draw: Any) -> None:
    stats = ("lse", "max_weight", "entropy", "distance", "distance_hist", "received", "pooled_max")
    inputs = draw(70, request={"stats": stats})
    getattr(inputs, which)[1, :, place] = torch.nan
    swept = attend(*inputs, engine="compiled")
    panels = attend(*inputs, engine="panels")
    for name, values in panels.items():
        if statistics.load(name).by_query:
            assert torch.equal(swept[name].isnan(), values.isnan()), name
        else:
            # The sweep keeps the weights of hidden keys at 0, even in a row of NaN.
            assert values.isnan()[swept[name].isnan()].all(), name
    assert swept["received"][1, :, : place + 1].isnan().all() == (which != "v")
    assert swept["pooled_max"][1, :, place // 16, 0].isnan().all() == (which != "v")
    assert swept["z"][1, :, place].isnan().all()
    assert not swept["z"][0].isnan().any()


def test_what_memory_held_before_does_not_matter(
    draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw(150, sigma=8.0)
    usual = attend(*inputs, engine="compiled")
    reserve, room = logits.Buffers.reserve, sweep.Sweep.room

    def poisoned(self: Any, panel: Tensor) -> dict[str, Tensor]:
        return {name: each.fill_(-(2**40)) for name, each in room(self, panel).items()}

    monkeypatch.setattr(
        logits.Buffers, "reserve", staticmethod(lambda *size: reserve(*size).fill_(torch.nan))
    )
    monkeypatch.setattr(sweep.Sweep, "room", poisoned)
    for name, values in attend(*inputs, engine="compiled").items():
        torch.testing.assert_close(values, usual[name], rtol=0, atol=0, equal_nan=True)


def test_the_sweep_writes_inside_its_memory(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = 64
    kept: list[Tensor] = []

    def fenced(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        memory = torch.full((3 * -(-count // 16) * 16 + 2 * guard,), 7.0)
        kept.append(memory)
        return memory[guard:-guard]

    monkeypatch.setattr(logits.Buffers, "reserve", staticmethod(fenced))
    for length in (1, 13, 100, 257):
        attend(*draw(length), engine="compiled")
        attend(*draw(length), Variant(window=9), engine="compiled")
    for memory in kept:
        assert (memory[:guard] == 7.0).all()
        assert (memory[-guard:] == 7.0).all()


MUTANTS = {
    "a row reads one key too far": ("key < ispread(high)", "key <= ispread(high)", {}),
    "a window is one key too wide": ("ispread(low)) &", "ispread(low - 1)) &", {"window": 20}),
    "padding is seen": ("!= 0, s, spread(MASKED)", "!= 7, s, spread(MASKED)", {"padded": True}),
    "a bin ends one key early": ("here - near + 1, stop", "here - near, stop", {}),
    "the query counts twice": ("(b ? near : 1)", "near", {"causal": False}),
    "the sink is no outcome": ("(loss + sunk)", "loss", {"sinks": torch.ones(4)}),
    "the sink takes nothing": ("&loss) + rest", "&loss)", {"sinks": torch.ones(4)}),
    "tiles close one row late": ("(r + 1) % c->tile", "r % c->tile", {}),
    "the last leader is left out": ("work[at] >= bound", "work[at] > bound", {}),
    "another head's values": ("head / c->group * c->value_room", "0", {}),
    "another head's keys": ("head / c->group * c->key_room", "0", {}),
    "a coarse exponential": ("0x1.62e42ap-1", "0x1.62ep-1", {}),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_in_the_text_is_noticed(
    mutant: str,
    draw: Any,
    agree: Any,
    rebuilt: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, wrong, options = MUTANTS[mutant]
    text = sweep.SOURCE.read_text()
    assert text.count(right) == 1
    source = tmp_path / "sweep.c"
    source.write_text(text.replace(right, wrong))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sweep, "SOURCE", source)
    monkeypatch.setattr(sweep, "agrees", lambda run: True)
    options = dict(options)
    inputs = draw(300, request={"k": 3})
    if options.pop("padded", False):
        options["key_mask"] = torch.arange(300).expand(2, -1) > 9
    variant = Variant(**options)
    dense = attend_dense(*inputs, variant)
    swept = attend(*inputs, variant, engine="compiled")

    def check() -> None:
        for name in ("z", "lse", "entropy", "distance_hist", "received", "pooled_mean", "topk"):
            agree(name, swept[name], dense[name])

    with pytest.raises(AssertionError):
        check()


def test_engines_that_cannot_be_had_are_refused(draw: Any) -> None:
    inputs = draw(20, request={"stats": ("max_weight",)})
    with pytest.raises(Refused, match=r"engine: 'fast'; choose from auto, panels, compiled"):
        attend(*inputs, engine="fast")
    rows = Variant(sigmoid=True)
    with pytest.raises(Refused, match="no sigmoid attention; or use engine='auto'"):
        attend(*inputs, rows, engine="compiled")
    torch.testing.assert_close(
        attend(*inputs, rows), attend(*inputs, rows, engine="panels"), rtol=0, atol=0
    )
    with pytest.raises(Refused, match="it computes in float32; or use engine='auto'"):
        sweep.choose("compiled", Variant(), torch.float64, torch.device("cpu"))
    assert sweep.choose("auto", Variant(), torch.float64, torch.device("cpu")) is None


def test_a_statistic_may_read_logits_that_the_sweep_overwrote(
    draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sigma in (1.0, 64.0):
        inputs = draw(140, sigma=sigma, request={"stats": ("lse",)})
        seen: dict[str, list[Tensor]] = {"compiled": [], "panels": []}
        for engine, found in seen.items():
            monkeypatch.setattr(
                Panel,
                "lse",
                property(
                    lambda panel, found=found: found.append(panel.logits.clone()) or panel.peak
                ),
            )
            attend(*inputs, engine=engine)
        both = [torch.cat([each.flatten() for each in seen[engine]]) for engine in seen]
        assert len(both[0]) > 140 * 70
        torch.testing.assert_close(both[0], both[1], rtol=1e-6, atol=1e-6)


def test_requests_with_more_leaders_than_the_sweep_holds(draw: Any) -> None:
    check_same(draw(200, request={"k": sweep.LARGEST_K + 1}))
    assert Request(stats=(), k=sweep.LARGEST_K + 1).k == 65
