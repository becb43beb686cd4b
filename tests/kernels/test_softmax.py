"""Torch's way from logits to weights: where they lie, and how many rows it takes, does not show."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, attend
from headscope.kernels.panels import softmax
from headscope.kernels.panels.logits import Logits
from headscope.kernels.panels.reductions import distance_bins, sheared
from headscope.kernels.panels.row_panels import Panels

STATS = ("lse", "max_weight", "entropy", "first_mass", "received", "pooled_mean", "distance_hist")
LENGTH = 140
LATE = torch.arange(LENGTH).expand(2, -1) >= torch.tensor([[0], [30]])
VARIANTS = {
    "causal": AttentionSpec(),
    "window": AttentionSpec(window=17),
    "both ways": AttentionSpec(causal=False),
    "left padding": AttentionSpec(key_mask=LATE, query_mask=LATE),
    "sinks": AttentionSpec(sinks=torch.tensor([-2.0, 0.0, 3.0, 40.0])),
    "soft cap": AttentionSpec(softcap=20.0),
}
SIGMOID = AttentionSpec(sigmoid=True)


def capture(inputs: Any, spec: AttentionSpec, stats: tuple[str, ...] = STATS) -> dict[str, Tensor]:
    request = Request(stats=stats, tile=16, k=3)
    result = attend(inputs.q, inputs.k, inputs.v, request, spec, engine="panels")
    return {name: values.nan_to_num(-1.0) for name, values in result.items()}


@pytest.mark.parametrize("sigma", [1.0, 30.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_weights_in_the_place_of_the_logits_are_the_same(name, sigma, draw):
    inputs = draw(LENGTH, sigma=sigma)
    alone = capture(inputs, VARIANTS[name])
    # Leaders are found among the logits, which therefore stay.
    beside = capture(inputs, VARIANTS[name], (*STATS, "topk_key"))
    assert all(torch.equal(values, beside[name]) for name, values in alone.items())


@pytest.mark.parametrize("sigma", [1.0, 30.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_how_many_rows_are_taken_at_once_does_not_matter(name, sigma, draw, monkeypatch):
    inputs = draw(LENGTH, sigma=sigma)
    whole = capture(inputs, VARIANTS[name])
    for elements in (1, 7 * LENGTH, 1 << 30):
        monkeypatch.setattr(softmax, "CACHED", elements)
        cut = capture(inputs, VARIANTS[name])
        assert all(torch.equal(values, cut[name]) for name, values in whole.items())


def test_sinks_may_be_every_second_number_of_others(draw):
    inputs = draw(LENGTH)
    sinks = torch.tensor([-2.0, 9.0, 0.0, 9.0, 3.0, 9.0, 4.0, 9.0])[::2]
    for engine in ("panels", "compiled"):
        apart, beside = (
            attend(
                inputs.q,
                inputs.k,
                inputs.v,
                Request(stats=("lse",)),
                AttentionSpec(sinks=each),
                engine=engine,
            )
            for each in (sinks, sinks.contiguous())
        )
        assert all(torch.equal(values, beside[name]) for name, values in apart.items())


def test_float64_is_for_the_rows_that_need_it(draw, monkeypatch):
    made: list[slice] = []
    exact = Logits.exact

    def watched(self: Logits, block: Any, rows: slice, *rest: Any, **options: Any) -> Tensor:
        made.append(rows)
        return exact(self, block, rows, *rest, **options)

    monkeypatch.setattr(Logits, "exact", watched)
    inputs = draw(250)
    capture(inputs, AttentionSpec())
    assert made == []
    inputs.q[1, 2, 130] *= 200.0
    capture(inputs, AttentionSpec())
    # Panels are whole tiles: the first has 240 queries.
    assert made == [slice(128, 240)]


def test_after_a_sharp_panel_the_next_is_made_in_float64_at_once(draw, monkeypatch):
    tries: list[bool] = []
    normalize = softmax.Softmax.normalize

    def watched(self: softmax.Softmax, *given: Any, sharp: bool = False) -> Any:
        tries.append(sharp)
        return normalize(self, *given, sharp=sharp)

    monkeypatch.setattr(softmax.Softmax, "normalize", watched)
    monkeypatch.setattr("headscope.kernels.panels.plan.ROWS", 32)
    inputs = draw(128, sigma=64.0)
    # The last panel is blunt: it is found out once, and would be forgotten with the next.
    inputs.q[:, :, 96:] /= 1000.0
    result = capture(inputs, AttentionSpec())
    assert tries == [False, True, True, True, True]
    monkeypatch.undo()
    whole = capture(inputs, AttentionSpec())
    assert all(torch.allclose(result[name], whole[name], atol=1e-5) for name in result)


@pytest.mark.parametrize("sigma", [1.0, 30.0])
@pytest.mark.parametrize("spec", [AttentionSpec(), SIGMOID], ids=["softmax", "sigmoid"])
def test_logits_that_were_overwritten_are_made_again(spec, sigma, draw):
    inputs = draw(100, sigma=sigma)
    panels = Panels(inputs.q, inputs.k, inputs.v, spec.fit(inputs.q, inputs.k), engine="panels")
    kept = replace(panels, reductions=frozenset({"weights", "logits"}))
    assert [one.keeps_logits for one in (panels, kept)] == [False, True]
    seen: list[list[Tensor]] = [[], []]
    for one, result in zip((panels, kept), seen, strict=True):

        def keep(part: Any, filled: Any, result: list[Tensor] = result) -> None:
            for panel in filled:
                result += [panel.weights.clone(), panel.max_logit, panel.logits.clone()]

        one.for_each_part(keep)
    assert len(seen[0]) == 2 * 3
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("before", [0, 1, 62, 63, 64, 65, 200])
def test_rectangles_hold_what_a_loop_over_the_distances_adds(before, rows):
    keys = before + rows
    weights = torch.rand(2, 2, rows, keys, generator=torch.Generator().manual_seed(keys))
    weights = weights.tril(before)
    starts = distance_bins(300)
    expected = torch.zeros(2, 2, rows, len(starts), dtype=torch.float64)
    for row in range(rows):
        for key in range(before + row + 1):
            expected[:, :, row, (before + row - key).bit_length()] += weights[:, :, row, key]
    # The same inside a larger piece of memory, which must not be read.
    around = torch.full((weights.numel() + 2000,), torch.nan)
    inside = around[1000:-1000].view_as(weights).copy_(weights)
    torch.testing.assert_close(sheared(inside, starts).double(), expected, rtol=1e-5, atol=1e-5)
