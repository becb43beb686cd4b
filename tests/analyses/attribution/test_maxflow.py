import numpy as np
import pytest
from scipy.optimize import linprog

from headscope.analyses.attribution import _maxflow

pytestmark = pytest.mark.requirement("C1")


def maps(layers: int, heads: int, size: int, *, causal: bool = True) -> np.ndarray:
    values = np.random.default_rng(layers).random((layers, heads, size, size)) ** 3
    values *= np.tril(np.ones((size, size))) if causal else 1
    return values / values.sum(-1, keepdims=True)


def test_attention_to_oneself_rolls_out_to_the_identity():
    mixed = _maxflow.mix(np.broadcast_to(np.eye(5), (3, 2, 5, 5)))
    np.testing.assert_allclose(_maxflow.rollout(mixed), np.eye(5), atol=1e-12)
    np.testing.assert_allclose(_maxflow.flow(mixed), np.eye(5), atol=1e-12)


def test_rows_sum_to_one():
    mixed = _maxflow.mix(maps(4, 3, 9))
    np.testing.assert_allclose(_maxflow.rollout(mixed).sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(_maxflow.flow(mixed).sum(-1), 1, atol=1e-12)


def test_with_one_layer_both_are_the_mixed_map():
    attention = maps(1, 3, 7)
    mixed = _maxflow.mix(attention)
    np.testing.assert_allclose(mixed[0], (attention[0].mean(0) + np.eye(7)) / 2, atol=1e-12)
    np.testing.assert_allclose(_maxflow.rollout(mixed), mixed[0], atol=1e-12)
    np.testing.assert_allclose(_maxflow.flow(mixed), mixed[0], atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_two_layer_flow_is_the_sum_of_the_smaller_capacities(causal):
    # Each path i -> k -> j has a middle node of its own.
    mixed = _maxflow.mix(maps(2, 2, 6, causal=causal))
    formula = np.minimum(mixed[1][:, :, None], mixed[0][None, :, :]).sum(1)
    formula /= formula.sum(-1, keepdims=True)
    np.testing.assert_allclose(_maxflow.flow(mixed), formula, atol=1e-9)


def test_chosen_rows_are_those_of_the_whole():
    mixed = _maxflow.mix(maps(3, 2, 8))
    whole = _maxflow.flow(mixed)
    np.testing.assert_allclose(_maxflow.flow(mixed, [7, 2]), whole[[7, 2]], atol=1e-9)


def test_three_layer_flow_agrees_with_a_linear_program():
    size, layers = 4, 3
    mixed = _maxflow.mix(maps(layers, 1, size))
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
    np.testing.assert_allclose(_maxflow.flow(mixed, [size - 1])[0], row / row.sum(), atol=1e-8)
