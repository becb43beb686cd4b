from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from refusals import check_refusal

from headscope.analyses import pruning
from headscope.analyses._interventions.ablation import ablated_metric, evaluate
from headscope.analyses.head_importance import _removal_order
from headscope.probes import capture
from headscope.probes.interventions import Ablate, Replace

pytestmark = pytest.mark.requirement("D1")

# Random orders: as many as bring their means near to what they are expected to be.
ORDERS = 60


@pytest.fixture(scope="module")
def task():
    return repeated(n=6, length=6)


@pytest.fixture(scope="module")
def result(circuit, task):
    captured = capture(circuit, task, stats=(), keep=("z",))
    return pruning.run(captured, circuit, task, share=0.0, orders=ORDERS)


def test_the_planted_circuit_is_the_smallest_set_and_goes_last(result):
    expected = np.zeros((2, 4))
    expected[PREVIOUS] = expected[INDUCTION] = 1
    np.testing.assert_array_equal(result["kept"], expected)
    assert set(result.attrs["smallest_set"]) == {"L0H0", "L1H0"}
    assert result.attrs["verdict"] == "supported"
    assert (float(result["size"]), float(result["kept_share"])) == (2.0, 1.0)
    assert {int(result["pruned_at"].values[head]) for head in (PREVIOUS, INDUCTION)} == {7, 8}
    # Six heads write nothing: without them nothing is lost, without one more everything is.
    curve = result["curve"].sel(order=["greedy", "one shot", "gate gradient"])
    np.testing.assert_array_equal(curve, [[1, 1, 1, 1, 1, 1, 1, 0, 0]] * 3)


def test_random_orders_lose_what_chance_takes(result):
    # Both planted heads are among the 8 − k that stay in comb(6, k) of comb(8, k) draws.
    chance = np.array([comb(6, k) / comb(8, k) for k in range(9)])
    drawn = result["curve"].sel(order="random")
    assert (abs(drawn - chance) <= 3 * np.sqrt(chance * (1 - chance) / ORDERS)).all()
    assert float(drawn.sum()) < float(result["curve"].sel(order="greedy").sum()) - 2
    assert float(result["random_share"]) < 0.5


def test_a_layer_can_do_with_its_planted_head_alone(result):
    expected = np.ones((2, 4))
    expected[PREVIOUS] = expected[INDUCTION] = 0
    np.testing.assert_array_equal(result["only_head"], expected)
    np.testing.assert_array_equal(result["whole_layer"], [1, 1])


def test_groups_go_as_a_whole(random_llama, task):
    groups = _removal_order.units(random_llama, grouped=True)
    assert groups[:2] == [((0, 0), (0, 1)), ((0, 2), (0, 3))]
    metric = "logit_difference"
    actual = ablated_metric(random_llama, task, metric, [[], *map(list, groups)])
    for at, group in enumerate(groups, start=1):
        expected = evaluate(random_llama, task, (Ablate(group),), metric=metric)
        np.testing.assert_allclose(actual[:, at], expected, atol=1e-5)
    captured = capture(random_llama, task, stats=(), keep=("z",))
    result = pruning.run(captured, random_llama, task, metric=metric, points=2, orders=2, share=0.5)
    assert result["group_curve"]["groups_removed"].values.tolist() == [0, 2, 4]
    # With nothing left both curves are the model without any head, measured on the same half.
    every = Ablate([(layer, head) for layer in range(2) for head in range(4)])
    bare = float(evaluate(random_llama, task, (every,), metric=metric)[1::2].mean())
    for name in ("curve", "group_curve"):
        np.testing.assert_allclose(result[name].values[:, -1], bare, atol=1e-5)


def test_means_stand_in_for_what_is_gone(random_llama, task):
    captured = capture(random_llama, task, stats=(), keep=("z",))
    means = torch.from_numpy(np.nanmean(captured["z"].values, axis=(0, 3)))
    gone, metric = [(0, 1), (1, 2)], "logit_difference"
    result = ablated_metric(random_llama, task, metric, [gone], means)[:, 0]
    expected = evaluate(random_llama, task, (Replace(gone, means),), metric=metric)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_greedy_finds_the_best_pair_where_an_exhaustive_search_does(random_llama, task):
    # Two of four heads of a layer: few enough to try every pair.
    metric, pool = "logit_difference", [((1, head),) for head in range(4)]
    order, first = _removal_order.greedy(random_llama, task, metric, pool, 0.0)
    tried = {
        pair: ablated_metric(random_llama, task, metric, [_removal_order.flat(pair)]).mean()
        for pair in combinations(pool, 2)
    }
    alone = ablated_metric(random_llama, task, metric, [list(unit) for unit in pool]).mean(0)
    assert order[0] == first[0] == pool[int(np.argmax(alone))]
    rest = {pair: score for pair, score in tried.items() if order[0] in pair}
    assert set(order[:2]) == set(max(rest, key=rest.get))


def test_bad_input_is_refused(circuit, task):
    captured = capture(circuit, task, stats=(), keep=("z",))
    check_refusal("task", pruning.run, captured, circuit, repeated(n=1, length=6))
