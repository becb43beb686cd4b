import numpy as np
import pytest

from headscope.analyses._stats.quantile import quantile


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.737, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 1000, 70_001])
def test_a_quantile_of_pieces_is_that_of_numpy(share, count):
    draw = np.random.default_rng(count)
    values = (draw.random(count) ** 8).astype(np.float32) + np.float32(1e-30)
    values[: count // 3] = 0.25  # ties
    pieces = np.array_split(draw.permutation(values), 7)
    result = quantile(lambda: iter(pieces), share)
    assert result == pytest.approx(float(np.quantile(values.astype(float), share)), rel=1e-12)


def test_a_quantile_of_nothing_is_missing():
    assert np.isnan(quantile(lambda: [np.zeros(0, dtype=np.float32)], 0.5))
