"""Which heads an intervention shows to have an effect, among many."""

import numpy as np
import pytest
import xarray as xr

from headscope.analyses._runtime.results import GRID, Results
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, differs_from_zero
from headscope.app.dashboard.components.head_filters import causal
from headscope.app.report.findings import findings
from headscope.app.report.scores import collect

SHAPE = (30, 9)
PLANTED = {"L2H3", "L4H5"}


def result(prompts: int, seed: int = 0, **attrs: object) -> dict[str, xr.Dataset]:
    """270 heads, of which L2H3 helps and L4H5 harms; the others do nothing but noise."""
    samples = np.random.default_rng(seed).normal(0, 1, (prompts, *SHAPE))
    samples[:, 2, 3] += 3
    samples[:, 4, 5] -= 3
    held = Results(xr.Dataset(coords={"layer": range(30), "head": range(9)}))
    held.add_mean("loss", GRID, samples, "Lost", "nats", "diverging", evidence="causal")
    return {"planted": held.dataset(**attrs)}


def test_noise_of_270_heads_is_no_effect():
    false, apart = [], []
    for seed in range(20):
        data = result(32, seed)
        lower, upper = (data["planted"][f"loss_{end}"].values for end in ("lower", "upper"))
        apart.append(((lower > 0) | (upper < 0)).sum())
        named = causal(collect(data))
        assert named >= PLANTED
        false.append(len(named - PLANTED) / len(named))
    # Intervals of single heads leave out 0 in one of twenty.
    assert np.mean(apart) > 10
    # What the procedure promises on average over samples.
    assert np.mean(false) < 0.1


def test_findings_state_which_heads_have_an_effect():
    told = {finding.name: finding.effect for finding in findings(result(32))}
    assert told.keys() > PLANTED
    assert {told[name] for name in PLANTED} == {"above its null"}
    assert set(told.values()) == {"above its null", "not above its null"}


def test_few_prompts_give_no_verdict():
    data = result(LEAST_PROMPTS - 1)
    assert causal(collect(data)) == set()
    assert {finding.effect for finding in findings(data)} == {"too few prompts"}


def test_a_null_of_the_analysis_itself_goes_first():
    assert causal(collect(result(32, important_heads=["L2H3"]))) == {"L2H3"}
    assert causal(collect(result(4, important_heads=["L2H3"]))) == set()


def test_the_adjusted_p_are_those_of_t_tests():
    from scipy.stats import false_discovery_control, ttest_1samp

    samples = np.random.default_rng(0).normal(0.8, 1, (20, 50))
    expected = false_discovery_control(ttest_1samp(samples, 0).pvalue) < 0.05
    assert expected.any()
    np.testing.assert_array_equal(differs_from_zero(samples), expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_is_alike_on_every_prompt_is_an_effect_unless_it_is_nothing(value):
    assert differs_from_zero(np.full((20, 2), value)).tolist() == [bool(value)] * 2
