import copy
import dataclasses

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
from headscope.analyses._relevance import method
from headscope.analyses._relevance.target import of_task
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._runtime import runner
from headscope.probes import capture, load_model, tasks


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


@pytest.mark.parametrize("name", FAMILIES)
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


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_tokens_are_those_of_the_maps_and_weights_of_transformers(name, random_llama, task):
    model = family(name, random_llama.tokenizer)
    encoded = ablation.encode_task(model, task)
    ids, found = direct_logit_attribution.of_prompt(model, encoded, 0)
    assert np.abs(found).max() > 1e-5
    np.testing.assert_allclose(found, dense(name, model, ids, encoded.questions[0][-1]), atol=2e-6)


def dense(name, model, ids, question):
    """Contributions in float64 from whole attention maps and weights, by the names of modules."""
    config = copy.deepcopy(model.module.config)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    module.load_state_dict(model.module.state_dict())
    module = module.double().eval()
    base = module.transformer if name == "gpt2" else module.model
    blocks = base.h if name == "gpt2" else base.layers
    kept = {}

    def keep(part, args, result):
        if args:
            kept[part] = args[0].detach(), result if isinstance(result, torch.Tensor) else result[0]

    for part in module.modules():
        part.register_forward_hook(keep)
    with torch.no_grad():
        maps = module(torch.tensor([list(ids)]), output_attentions=True).attentions
    table = module.lm_head.weight.detach()
    along = table[list(question.answer_ids)].mean(0) - table[list(question.wrong_ids)].mean(0)
    last = base.ln_f if name == "gpt2" else base.norm
    expected = np.zeros((2, 4, len(ids)))
    for layer, block in enumerate(blocks):
        if name == "gpt2":
            value = kept[block.attn.c_attn][1][0].detach().chunk(3, -1)[2]
            out = block.attn.c_proj.weight.detach()
        else:
            value = kept[block.self_attn.v_proj][1][0].detach()
            out = block.self_attn.o_proj.weight.detach().T
        value = value.reshape(len(ids), -1, 8)
        value = value.repeat_interleave(4 // value.shape[1], 1)
        written = torch.einsum("hj,jhs,hsr->hjr", maps[layer][0, :, -1], value, out.view(4, 8, -1))
        if name == "gemma2":
            post = block.post_attention_layernorm
            entered = kept[post][0][0, -1]
            written = written / (entered.square().mean() + post.eps).sqrt() * (1 + post.weight)
        entered = kept[last][0][0, -1]
        if name == "gpt2":
            written = written - written.mean(-1, keepdim=True)
            size = (entered.var(unbiased=False) + last.eps).sqrt()
        else:
            eps = last.eps if name == "gemma2" else last.variance_epsilon
            size = (entered.square().mean() + eps).sqrt()
        gain = 1 + last.weight if name == "gemma2" else last.weight
        expected[layer] = (written / size * gain @ along).detach().numpy()
    return expected


def test_capped_logits_are_split_before_the_cap(random_llama, task):
    model = family("gemma2", random_llama.tokenizer)
    model.module.config.final_logit_softcapping = 0.05
    parts = direct_logit_attribution.attribute(model, task)
    assert parts.capped
    capped = ablation.evaluate(model, task, metric="logit_difference")
    assert np.abs(parts.logit - capped).max() > 1e-2
    np.testing.assert_allclose(parts.total(), parts.logit, atol=1e-4)


def check_sums(model, task):
    """Heads, their tokens and the other components sum to what the model gives, as C6 says."""
    encoded = ablation.encode_task(model, task)
    encoded = dataclasses.replace(encoded, questions=[each[-1:] for each in encoded.questions])
    parts = direct_logit_attribution.attribute(model, encoded)
    whole = ablation.evaluate(model, encoded, metric="logit_difference")
    np.testing.assert_allclose(parts.total(), whole, atol=1e-4 * np.abs(whole).max())
    _, tokens = direct_logit_attribution.of_prompt(model, encoded, 0)
    np.testing.assert_allclose(tokens.sum(-1), np.nan_to_num(parts.heads[0]), atol=1e-4)


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("name", ["bundled", "bundled-python", "induction"])
def test_contributions_sum_to_the_logits_of_every_bundled_model(name):
    model = load_model(f"headscope/{name}")
    check_sums(model, tasks.make("induction", model.tokenizer, n=3, length=8))


@pytest.mark.requirement("C6")
def test_the_relevance_of_tokens_is_their_share_of_the_logit(bundled):
    encoded = ablation.encode_task(bundled, tasks.make("ioi", bundled.tokenizer, n=2))
    target = of_task(encoded)[1]
    relevance = method("logit_contributions").relevance(Trace(bundled, target))
    _, shares = direct_logit_attribution.of_prompt(bundled, encoded, 1)
    np.testing.assert_allclose(relevance, shares.sum((0, 1)), atol=1e-5)
    result = runner.execute("logit_attribution", bundled, n=2, options={"prompt": 1})
    assert result["token_contribution"].sum() == pytest.approx(
        float(result["head_token_contribution"].sum()), abs=1e-6
    )


def test_direct_logits_stand_beside_ablation_on_the_bundled_model(bundled):
    result = runner.execute("logit_attribution", bundled, n=8)
    assert result.attrs["sum_gap"] < 1e-3
    rho = float(result["direct_vs_ablation"])
    assert f"Spearman ρ {rho:#.3g}" in result.attrs["note"]
    agrees = float(result["direct_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == ("supported" if agrees else "disagreement")
    assert -1 <= float(result["direct_vs_ablation_lower"]) <= rho + 0.3
