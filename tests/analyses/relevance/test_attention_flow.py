import networkx as nx
import numpy as np
import pytest
from scipy.optimize import linprog

from headscope.analyses._relevance import _attention_flow as attention_flow

pytestmark = pytest.mark.requirement("C1")


def maps(layers: int, heads: int, size: int, *, causal: bool = True) -> np.ndarray:
    values = np.random.default_rng(layers).random((layers, heads, size, size)) ** 3
    values *= np.tril(np.ones((size, size))) if causal else 1
    return values / values.sum(-1, keepdims=True)


def test_attention_to_oneself_rolls_out_to_the_identity():
    mixed = attention_flow.mix(np.broadcast_to(np.eye(5), (3, 2, 5, 5)))
    np.testing.assert_allclose(attention_flow.rollout(mixed), np.eye(5), atol=1e-12)
    np.testing.assert_allclose(attention_flow.flow(mixed), np.eye(5), atol=1e-12)


def test_rows_sum_to_one():
    mixed = attention_flow.mix(maps(4, 3, 9))
    np.testing.assert_allclose(attention_flow.rollout(mixed).sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(attention_flow.flow(mixed).sum(-1), 1, atol=1e-12)


def test_with_one_layer_both_are_the_mixed_map():
    attention = maps(1, 3, 7)
    mixed = attention_flow.mix(attention)
    np.testing.assert_allclose(mixed[0], (attention[0].mean(0) + np.eye(7)) / 2, atol=1e-12)
    np.testing.assert_allclose(attention_flow.rollout(mixed), mixed[0], atol=1e-12)
    np.testing.assert_allclose(attention_flow.flow(mixed), mixed[0], atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_two_layer_flow_is_the_sum_of_the_smaller_capacities(causal):
    # Each path i -> k -> j has a middle node of its own.
    mixed = attention_flow.mix(maps(2, 2, 6, causal=causal))
    formula = np.minimum(mixed[1][:, :, None], mixed[0][None, :, :]).sum(1)
    formula /= formula.sum(-1, keepdims=True)
    np.testing.assert_allclose(attention_flow.flow(mixed), formula, atol=1e-9)


def test_chosen_rows_are_those_of_the_whole():
    mixed = attention_flow.mix(maps(3, 2, 8))
    whole = attention_flow.flow(mixed)
    np.testing.assert_allclose(attention_flow.flow(mixed, [7, 2]), whole[[7, 2]], atol=1e-9)


def test_flow_is_that_of_networkx():
    mixed = attention_flow.mix(maps(5, 2, 7))
    graph = nx.DiGraph()
    for layer, query, key in zip(*np.nonzero(mixed), strict=True):
        ends = (layer + 1, query), (layer, key)
        graph.add_edge(*ends, capacity=mixed[layer, query, key])
    row = np.array([nx.maximum_flow_value(graph, (5, 6), (0, key)) for key in range(7)])
    np.testing.assert_allclose(attention_flow.flow(mixed, [6])[0], row / row.sum(), atol=1e-7)


def test_other_published_maps():
    attention = maps(2, 3, 6)
    largest = attention.max(1) + np.eye(6)
    expected = largest / largest.sum(-1, keepdims=True)
    np.testing.assert_allclose(attention_flow.mix(attention, "max"), expected, atol=1e-12)
    bare = attention_flow.mix(attention, residual=False)
    np.testing.assert_allclose(bare, attention.mean(1), atol=1e-12)
    kept = attention_flow.mix(attention, discard=0.9, residual=False)
    seen = np.tril_indices(6)
    for layer in range(2):
        mean = attention[layer].mean(0)
        large = mean >= np.quantile(mean[seen], 0.9)
        assert (kept[layer][large] > 0).all()
        # Rows that keep nothing stay where they are.
        assert (kept[layer][~large & ~np.eye(6, dtype=bool)] == 0).all()


def test_without_the_first_key_rows_are_what_is_left_of_them():
    attention = maps(2, 2, 5)
    result, whole = attention_flow.mix(attention, residual=False, first=False)[0], attention.mean(1)
    left = whole[0, 1:, 1:] / whole[0, 1:, 1:].sum(-1, keepdims=True)
    np.testing.assert_allclose(result[1:, 1:], left, atol=1e-12)
    assert (result[1:, 0] == 0).all()
    np.testing.assert_allclose(result[0], whole[0, 0])
    sink = np.zeros((1, 1, 3, 3))
    sink[..., 0] = 1.0
    np.testing.assert_array_equal(
        attention_flow.mix(sink, residual=False, first=False)[0], np.eye(3)
    )
    # The other options hold for what is left.
    largest = attention[0].max(0)
    largest[1:, 0] = 0.0
    largest[1:] /= largest[1:].sum(-1, keepdims=True)
    least = np.quantile(largest[largest > 0], 0.3)
    mixed = np.where(largest < least, 0.0, largest) + np.eye(5)
    mixed /= mixed.sum(-1, keepdims=True)
    options = {"residual": True, "discard": 0.3, "first": False}
    np.testing.assert_allclose(attention_flow.mix(attention, "max", **options)[0], mixed)


def test_a_flow_is_too_small_by_a_part_of_its_smallest_cut_alone():
    size, layers = 6, 3
    mixed = attention_flow.mix(maps(layers, 2, size))
    graph = nx.DiGraph()
    for layer, query, key in zip(*np.nonzero(mixed), strict=True):
        # Capacities in whole parts of 10⁻¹⁸: no rounding counts here.
        capacity = int(mixed[layer, query, key] * 10**18)
        graph.add_edge((layer + 1, query), (layer, key), capacity=capacity)
    exact = np.array(
        [nx.maximum_flow_value(graph, (layers, size - 1), (0, key)) for key in range(size)]
    )
    result = attention_flow.largest_flows(mixed, [size - 1])[0]
    missing = exact - result * 10**9
    assert (missing >= 0).all()
    assert (missing < size**2 * 10**9).all()
    assert missing.max() > 0


def test_three_layer_flow_agrees_with_a_linear_program():
    size, layers = 4, 3
    mixed = attention_flow.mix(maps(layers, 1, size))
    edges = [(layer, i, j) for layer in range(layers) for i in range(size) for j in range(size)]
    bounds = [(0, mixed[edge]) for edge in edges]
    row = np.zeros(size)
    for sink in range(size):
        # Conserve flow in the middle; push as much as possible from (L, 3) into (0, sink).
        balance = np.zeros(((layers - 1) * size, len(edges)))
        gain = np.zeros(len(edges))
        for number, (layer, i, j) in enumerate(edges):
            if layer > 0:
                balance[(layer - 1) * size + j, number] += 1
            if layer < layers - 1:
                balance[layer * size + i, number] -= 1
            if layer == layers - 1 and i != size - 1:
                bounds[number] = (0, 0)
            gain[number] = -1 if layer == 0 and j == sink else 0
        solved = linprog(gain, A_eq=balance, b_eq=np.zeros(len(balance)), bounds=bounds)
        row[sink] = -solved.fun
    np.testing.assert_allclose(
        attention_flow.flow(mixed, [size - 1])[0], row / row.sum(), atol=1e-8
    )
