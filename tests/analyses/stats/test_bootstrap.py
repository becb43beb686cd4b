import numpy as np

from headscope.analyses._stats.bootstrap import bootstrap


def test_the_interval_covers_the_true_mean_at_its_level():
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(60, 400))
    _, lower, upper = bootstrap(samples, resamples=500)
    assert 0.90 < ((lower < 3.0) & (upper > 3.0)).mean() < 0.98


def test_its_width_is_that_of_the_normal_theory():
    samples = np.random.default_rng(1).normal(size=400)
    mean, lower, upper = bootstrap(samples, resamples=4000)
    half = 1.96 * samples.std() / np.sqrt(400)
    assert np.isclose(mean, samples.mean())
    np.testing.assert_allclose([lower, upper], [mean - half, mean + half], atol=0.1 * half)


def test_missing_values_are_left_out():
    samples = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    mean, lower, upper = bootstrap(samples)
    assert mean[0] == 2.0
    assert lower[0] >= 1.0
    assert upper[0] <= 3.0
    assert np.isnan([mean[1], lower[1], upper[1]]).all()


def test_one_prompt_has_no_interval():
    mean, lower, upper = bootstrap(np.array([[0.5]]))
    assert mean[0] == 0.5
    assert np.isnan(lower[0])
    assert np.isnan(upper[0])


def test_no_column_has_no_interval():
    mean, lower, upper = bootstrap(np.empty((3, 0)))
    assert mean.shape == lower.shape == upper.shape == (0,)
