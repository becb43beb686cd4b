"""The analyses on models of other kinds: a TransformerBridge, prompts of several lengths."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from bridges import bridge_of
from constructed import repeated
from transformers import PreTrainedTokenizerFast

from headscope.analyses import importance, rollout
from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._measurements import head_outputs
from headscope.analyses.attribution import _input
from headscope.probes import capture, load_model
from headscope.probes.interventions import Ablate


@pytest.fixture(scope="module")
def mixed():
    short, long = repeated(n=2, length=4), repeated(n=2, length=7, seed=1)
    # Out of order, so that rows which are put back in the wrong place are seen.
    prompts = (long.prompts[0], short.prompts[0], long.prompts[1], short.prompts[1])
    return replace(short, prompts=prompts)


def test_prompts_of_several_lengths_keep_their_rows(random_llama, mixed):
    left = ablation.ablate_each_head(random_llama, mixed, "logit_difference")
    slope = head_gradients.gate_gradient(random_llama, mixed, "logit_difference")
    for layer, head in ((0, 1), (1, 3)):
        edit = Ablate(heads=((layer, head),))
        expected = evaluate(random_llama, mixed, (edit,), metric="logit_difference")
        np.testing.assert_allclose(left[:, layer, head], expected, atol=1e-5)
    for row, prompt in enumerate(mixed.prompts):
        alone = replace(mixed, prompts=(prompt,))
        expected = head_gradients.gate_gradient(random_llama, alone, "logit_difference")[0]
        np.testing.assert_allclose(slope[row], expected, atol=1e-5)


def test_rollout_cuts_every_prompt_to_its_length(random_llama, mixed):
    together = capture(random_llama, mixed, stats=("pattern",))
    result = rollout.run(together, random_llama, prompt=1, substitutes=1)
    alone = capture(random_llama, replace(mixed, prompts=mixed.prompts[1:2]), stats=("pattern",))
    expected = rollout.run(alone, random_llama, substitutes=1)
    assert result["rollout"].shape == (9, 9)
    for name in ("rollout", "flow", "input_gradient"):
        np.testing.assert_allclose(result[name].values, expected[name].values, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # TransformerLens warns about its own dependencies
def test_a_transformer_bridge_gives_the_numbers_of_its_model(random_llama, mixed, tmp_path):
    # TransformerLens reads the tokenizer again from where it was saved.
    random_llama.tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    bridge = bridge_of(copy.deepcopy(random_llama.module), saved)
    results = []
    for each in (load_model(bridge, tokenizer=random_llama.tokenizer), random_llama):
        cap = capture(each, mixed, stats=(), keep=("z",))
        result = importance.run(cap, each, mixed, metric="logit_difference")
        scores = [result[name] for name in ("zero_ablation", "mean_ablation", "gate_gradient")]
        slopes = _input.input_gradient(each, [0, 5, 6, 7], 8)
        results.append((*scores, slopes, head_outputs.output_weights(each)))
    *pairs, weights = zip(*results, strict=True)
    for pair in pairs:
        np.testing.assert_allclose(*pair, atol=1e-4)
    np.testing.assert_allclose(*weights, atol=1e-6)
