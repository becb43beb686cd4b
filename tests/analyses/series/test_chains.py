"""Chains of references: heads for longer chains emerge after those that they build on.

Musat, Mechanism and Emergence of Stacked Attention Heads (2411.12118), on models trained here.
"""

from typing import Any

import chains
import numpy as np
import pytest
import torch
import xarray as xr
from checkpoint_series import follow
from refusals import check_message

from headscope.analyses.series import emergence, order
from headscope.probes import load_model
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate

# Half a minute of training.
pytestmark = pytest.mark.long

STEPS = (0, 20, 40, 80, 120, 160, 200, 300, 400)
SEEDS = range(4)
ASKED = chains.draw(48, torch.Generator().manual_seed(77))


def targets(rows: chains.Rows) -> dict[str, list[list[list[int]]]]:
    """The words one step and two steps along the chain that begins at every word."""
    one = rows.refers
    two = torch.where(one >= 0, one.gather(1, one.clamp(min=0)), -1)
    return {
        name: [[[key] * (key >= 0) for key in row] for row in keys.tolist()]
        for name, keys in (("one_step", one), ("two_steps", two))
    }


def accuracy(module: Any, edits: tuple[Ablate, ...] = (), longest: int = 3) -> list[float]:
    """Accuracy on chains of every length, over many texts."""
    rows = chains.draw(400, torch.Generator().manual_seed(78))
    result = logits(load_model(module), rows.ids, edits)[..., : chains.VALUES].argmax(-1)
    right = (result == rows.values).double()
    return [float(right[rows.steps == length].mean()) for length in range(longest + 1)]


def trained(**options: Any) -> tuple[Any, xr.Dataset]:
    """Train a model; return it and what its heads score over the training."""
    scored, last = [], None

    def states():
        nonlocal last
        for step, module in chains.train(STEPS, **options):
            scored.append(accuracy(module))
            last = module
            yield step, module

    result = follow(states(), ASKED.ids.tolist(), targets(ASKED))
    for length in (1, 3):
        values = [row[length] for row in scored]
        result[f"accuracy_{length}"] = ("checkpoint", values, {"units": "share"})
    return last, result


@pytest.fixture(scope="module")
def runs() -> list[tuple[Any, xr.Dataset]]:
    return [trained(seed=seed) for seed in SEEDS]


@pytest.mark.requirement("E4")
def test_the_head_of_one_step_emerges_before_the_head_of_two(runs):
    timelines = [timeline for _, timeline in runs]
    pair = order(timelines, ["two_steps", "one_step"])
    assert pair.attrs["verdict"] == "supported"
    assert float(pair["in_order"][1]) == 1
    assert set(pair.attrs["order"][1]["entries"]) == {"L1H0"}
    low, high = float(pair["lag_lower"][1]), float(pair["lag_upper"][1])
    assert 20 < low < high < 400
    # Every run shows it by its own checkpoints.
    for timeline in timelines:
        assert order(timeline, ["two_steps", "one_step"]).attrs["pairs"] == ["supported"]
        # In layer 0 the head of one step, too; where both layers have one, either may lead.
        first = emergence(timeline, "one_step", of="change")["emergence_step_upper"]
        then = emergence(timeline, "two_steps", of="change")["emergence_step_lower"]
        assert float(first.sel(layer=0, head=0)) <= float(then.sel(layer=1, head=0))


@pytest.mark.requirement("E4")
def test_chains_of_three_are_solved_when_the_head_of_two_steps_is_there(runs):
    """Two layers reach three steps: one from the first, two from the second."""
    for module, timeline in runs:
        assert min(accuracy(module)) > 0.95
        solved = float(emergence(timeline, "accuracy_1", of="change")["emergence_step"])
        longer = emergence(timeline, "accuracy_3", threshold=0.9)
        head = emergence(timeline, "two_steps", of="change", least=0.15)
        assert solved < float(longer["emergence_step_lower"])
        (row,) = head.attrs["order"]
        assert row["name"] == "L1H0"


@pytest.mark.requirement("E4")
def test_one_layer_solves_one_step_and_no_more():
    *_, (_, module) = chains.train((400,), layers=1)
    none, first, second, three = accuracy(module)
    assert min(none, first) > 0.95
    assert max(second, three) < 0.75


@pytest.mark.requirement("E4")
def test_each_head_carries_the_chains_that_need_it(runs):
    module = runs[0][0]
    first, second = (accuracy(module, (Ablate(heads=((layer, 0),)),)) for layer in range(2))
    # The second layer builds on the first, and takes one step by itself where it has to.
    assert min(second[:2]) > 0.9
    assert max(*first[2:], *second[2:]) < 0.2
    assert first[1] > 0.9


@pytest.mark.requirement("E4")
def test_nothing_emerges_where_answers_are_shuffled():
    """The control: the same training, with the answers of other texts."""
    _, timeline = trained(seed=0, shuffled=True)
    assert float(timeline["accuracy_1"][-1]) < 0.2
    check_message("0 emerge in every run", order, timeline, ["one_step", "two_steps"])
    assert np.ptp(timeline["two_steps"].values) < 0.15
