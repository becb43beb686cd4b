import copy
import warnings

import numpy as np
import pytest
import torch
import transformers
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


def family(name, tokenizer):
    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
    wide = {
        **size, "hidden_size": 33 if name == "odd" else 32, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 80,
    }  # fmt: skip
    made = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**size, n_positions=80, n_embd=32, n_layer=2, n_head=4)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**wide)),
        "odd": lambda: transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**wide, head_dim=8, num_key_value_heads=2)
        ),
        "parallel": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**wide)),
        "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**wide)),
        "scaled": lambda: transformers.GraniteForCausalLM(
            transformers.GraniteConfig(**wide, residual_multiplier=0.5)
        ),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**wide, head_dim=8, num_key_value_heads=2)
        ),
    }[name]  # fmt: skip
    return load_model(uneven(made()), tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["gpt2", "llama", "odd", "parallel", "phi", "scaled"])
def test_parts_sum_to_the_logit_difference(name, random_llama, task):
    model = family(name, random_llama.tokenizer)
    parts = direct_logit_attribution.attribute(model, task)
    expected = ablation.evaluate(model, task, metric="logit_difference")
    np.testing.assert_allclose(parts.logit, expected, atol=1e-4)
    np.testing.assert_allclose(parts.total(), expected, atol=1e-4)
    assert np.abs(parts.heads).max() > 1e-4


def test_heads_are_those_of_transformer_lens(random_llama, task, tmp_path):
    module = uneven(copy.deepcopy(random_llama.module))
    model = load_model(module, tokenizer=random_llama.tokenizer)
    random_llama.tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns about its own dependencies
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(
            "random-llama", hf_model=copy.deepcopy(module), tokenizer=saved, dtype=torch.float32
        )
        encoded = ablation.encode_task(model, task)
        ids, asked = encoded.ids, encoded.questions
        expected = np.zeros((2, 2, 4))
        # TransformerLens leaves the gain of a norm that is not folded to the caller.
        table = (module.lm_head.weight * module.model.norm.weight).detach()
        for row, (prompt, questions) in enumerate(zip(ids, asked, strict=True)):
            with torch.no_grad():
                _, cache = bridge.run_with_cache(torch.tensor([prompt]))
                for one in questions:
                    stack = cache.stack_head_results(layer=-1, pos_slice=one.at)
                    normed = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=one.at)[:, 0]
                    towards = table[one.answer_ids[0]] - table[one.wrong_ids[0]]
                    each = (normed @ towards).reshape(2, 4).numpy()
                    expected[row] += each / len(questions)
    found = direct_logit_attribution.attribute(model, task).heads
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # The bridge itself through headscope: the same numbers.
    again = direct_logit_attribution.attribute(
        load_model(bridge, tokenizer=random_llama.tokenizer), task
    ).heads
    np.testing.assert_allclose(again, expected, atol=2e-5)


def test_only_the_head_that_copies_writes_to_the_answer(circuit):
    task = repeated(n=3, length=6)
    cap = capture(circuit, task, stats=(), keep=("z",))
    result = logit_attribution.run(cap, circuit, task)
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
    assert f"{rho:.2f}" in result.attrs["note"]
    agrees = float(result["direct_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == ("supported" if agrees else "disagreement")
    assert -1 <= float(result["direct_vs_ablation_lower"]) <= rho + 0.3
