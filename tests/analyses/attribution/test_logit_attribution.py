import copy

import numpy as np
import pytest
import torch
import transformers
from bridges import bridge_of
from constructed import INDUCTION, WORDS, repeated
from transformers import PreTrainedTokenizerFast

from headscope.analyses import logit_attribution
from headscope.analyses._interventions import ablation
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._runtime import runner
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture, load_model


@pytest.fixture(scope="module")
def task():
    return repeated(n=2, length=5)


def uneven(module, scale=0.5):
    """Give every vector of a model, gains and biases, numbers of its own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in module.parameters():
            if part.ndim == 1:
                part += scale * torch.randn(part.shape, generator=generator)
    return module.eval()


SIZE = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
WIDE = {
    **SIZE, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 80,
}  # fmt: skip
GROUPED = {**WIDE, "head_dim": 8, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": {**SIZE, "n_positions": 80, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": WIDE,
    "qwen3": {**GROUPED, "hidden_size": 33},  # odd
    "gpt_neox": WIDE,  # attention and MLP in parallel
    "phi": WIDE,
    "granite": {**WIDE, "residual_multiplier": 0.5},  # scaled
    "gemma2": GROUPED,
}


def family(name, tokenizer):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **FAMILIES[name])
    module = transformers.AutoModelForCausalLM.from_config(config)
    return load_model(uneven(module), tokenizer=tokenizer)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma2"])
def test_parts_sum_to_the_logit_difference(name, random_llama, task):
    model = family(name, random_llama.tokenizer)
    parts = direct_logit_attribution.attribute(model, task)
    expected = ablation.evaluate(model, task, metric="logit_difference")
    np.testing.assert_allclose(parts.logit, expected, atol=1e-4)
    np.testing.assert_allclose(parts.total(), expected, atol=1e-4)
    assert np.abs(parts.heads).max() > 1e-4


@pytest.mark.filterwarnings("ignore")  # TransformerLens warns about its own dependencies
def test_heads_are_those_of_transformer_lens(random_llama, task, tmp_path):
    module = uneven(copy.deepcopy(random_llama.module))
    model = load_model(module, tokenizer=random_llama.tokenizer)
    random_llama.tokenizer.save_pretrained(tmp_path)
    bridge = bridge_of(copy.deepcopy(module), PreTrainedTokenizerFast.from_pretrained(tmp_path))
    encoded = ablation.encode_task(model, task)
    expected = np.zeros((2, 2, 4))
    # TransformerLens leaves the gain of a norm that is not folded to the caller.
    table = (module.lm_head.weight * module.model.norm.weight).detach()
    for row, (prompt, questions) in enumerate(zip(encoded.ids, encoded.questions, strict=True)):
        with torch.no_grad():
            _, cache = bridge.run_with_cache(torch.tensor([prompt]))
            for one in questions:
                stack = cache.stack_head_results(layer=-1, pos_slice=one.at)
                normed = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=one.at)[:, 0]
                towards = table[one.answer_ids[0]] - table[one.wrong_ids[0]]
                expected[row] += (normed @ towards).reshape(2, 4).numpy() / len(questions)
    found = direct_logit_attribution.attribute(model, task).heads
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # The bridge itself through headscope: the same numbers.
    again = direct_logit_attribution.attribute(load_model(bridge, tokenizer=model.tokenizer), task)
    np.testing.assert_allclose(again.heads, expected, atol=2e-5)


def test_only_the_head_that_copies_writes_to_the_answer(circuit):
    task = repeated(n=3, length=6)
    result = logit_attribution.run(capture(circuit, task, stats=(), keep=("z",)), circuit, task)
    found = result["direct_logit"].values
    assert found[INDUCTION] > 1
    others = found.copy()
    others[INDUCTION] = 0
    assert np.abs(others).max() < 1e-6
    whole = float(result["logit_difference"])
    assert float(result["component_logit"].sum()) == pytest.approx(whole, abs=1e-3)
    # The previous-token head works through the next layer: ablation ranks it, direct logits do not.
    assert "they part most at L0H0" in result.attrs["note"]


def test_a_norm_behind_the_attention_is_refused(random_llama, task):
    with pytest.raises(HeadscopeError, match="do not write straight"):
        direct_logit_attribution.attribute(family("gemma2", random_llama.tokenizer), task)


def test_direct_logits_stand_beside_ablation_on_the_bundled_model(bundled):
    result = runner.execute("logit_attribution", bundled, n=8)
    assert result.attrs["sum_gap"] < 1e-3
    rho = float(result["direct_vs_ablation"])
    assert f"Spearman ρ {rho:#.3g}" in result.attrs["note"]
    agrees = float(result["direct_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == ("supported" if agrees else "disagreement")
    assert -1 <= float(result["direct_vs_ablation_lower"]) <= rho + 0.3
