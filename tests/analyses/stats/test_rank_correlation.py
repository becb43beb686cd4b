import numpy as np
import pytest
from scipy.stats import spearmanr

from headscope.analyses._stats.rank_correlation import ranked


def test_ranked_is_spearmans():
    assert ranked(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == 0.8
    first, second = np.random.default_rng(0).integers(0, 5, (2, 30)).astype(float)
    assert ranked(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("values", [np.ones(4), np.ones(1), np.ones(0)])
def test_ranked_has_no_value_where_nothing_varies(values):
    assert np.isnan(ranked(values, np.arange(float(len(values)))))
