import copy

import numpy as np
import pytest
import torch
import transformers
from architectures import CONFIGS, MASKED, PAIRED, PLAIN, build
from bridges import bridge_of
from constructed import BEFORE, HEADS, INDUCTION, OUT, PLACE, SIZE, TOKEN, WORDS, repeated
from logit_parts import FAMILIES, check_sums, family, last_questions, stream_before_the_norm, uneven
from transformers import PreTrainedTokenizerFast

from headscope.analyses import logit_attribution
from headscope.analyses._interventions import ablation
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._measurements.readout import Readout
from headscope.analyses._relevance import method
from headscope.analyses._relevance.target import of_task
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._runtime import runner
from headscope.kernels.errors import NotApplicable, UnsupportedModel
from headscope.probes import capture, checkpoints, load_model, tasks
from headscope.probes.prompts.tokens import EncodedQuestion, EncodedTask


@pytest.fixture(scope="module")
def task():
    return repeated(n=2, length=5)


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
            for question in questions:
                stack = cache.stack_head_results(layer=-1, pos_slice=question.at)
                normed = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=question.at)[:, 0]
                towards = table[question.answer_ids[0]] - table[question.wrong_ids[0]]
                expected[row] += (normed @ towards).reshape(2, 4).numpy() / len(questions)
    result = direct_logit_attribution.attribute(model, task).heads
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(result, expected, atol=2e-5)
    # The bridge itself through headscope: the same numbers.
    again = direct_logit_attribution.attribute(load_model(bridge, tokenizer=model.tokenizer), task)
    np.testing.assert_allclose(again.heads, expected, atol=2e-5)


def test_only_the_head_that_copies_writes_to_the_answer(circuit):
    task = repeated(n=3, length=6)
    result = logit_attribution.run(capture(circuit, task, stats=(), keep=("z",)), circuit, task)
    actual = result["direct_logit"].values
    assert actual[INDUCTION] > 1
    others = actual.copy()
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
    opened = direct_logit_attribution.of_prompt(Readout(model), encoded, 0)
    assert np.abs(opened.after).max() > 1e-5
    after, before = dense(name, model, opened.ids, encoded.questions[0][-1])
    np.testing.assert_allclose(opened.after, after, atol=2e-6)
    np.testing.assert_allclose(opened.before, before, atol=2e-6)


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
    after, before = np.zeros((2, 2, 4, len(ids)))
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
        before[layer] = (written @ along).detach().numpy()
        entered = kept[last][0][0, -1]
        if name == "gpt2":
            written = written - written.mean(-1, keepdim=True)
            size = (entered.var(unbiased=False) + last.eps).sqrt()
        else:
            eps = last.eps if name == "gemma2" else last.variance_epsilon
            size = (entered.square().mean() + eps).sqrt()
        gain = 1 + last.weight if name == "gemma2" else last.weight
        after[layer] = (written / size * gain @ along).detach().numpy()
    return after, before


def test_capped_logits_are_split_before_the_cap(random_llama, task):
    model = family("gemma2", random_llama.tokenizer)
    model.module.config.final_logit_softcapping = 0.05
    parts = direct_logit_attribution.attribute(model, task)
    assert parts.capped
    capped = ablation.evaluate(model, task, metric="logit_difference")
    assert np.abs(parts.logit - capped).max() > 1e-2
    np.testing.assert_allclose(parts.total(), parts.logit, atol=1e-4)


# What a block adds to the stream beside the products of values and output weights.
BESIDE = {
    "gpt2": lambda block: [block.mlp, block.attn.c_proj.bias],
    "llama": lambda block: [block.mlp],
    "gpt_neox": lambda block: [block.mlp, block.attention.dense.bias],
    "gemma2": lambda block: [block.post_feedforward_layernorm],
}


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("name", BESIDE)
def test_before_the_norm_parts_are_what_the_modules_write(name, random_llama, task):
    model = family(name, random_llama.tokenizer)
    encoded = last_questions(model, task)
    actual = direct_logit_attribution.attribute(model, encoded).before
    base = model.base
    blocks = base.h if name == "gpt2" else base.layers
    table = model.module.get_output_embeddings().weight.detach().double()
    near = 1e-4 * np.abs(actual.heads).max()
    made = {}

    def keep(part, args, result):
        made[part] = result[0, -1].detach().double()

    for block in blocks:
        for part in BESIDE[name](block):
            if isinstance(part, torch.nn.Module):
                part.register_forward_hook(keep)
    for row, (ids, (question,)) in enumerate(zip(encoded.ids, encoded.questions, strict=True)):
        with torch.no_grad():
            model.module(torch.tensor([ids[: question.at + 1]]))
        along = table[list(question.answer_ids)].mean(0) - table[list(question.wrong_ids)].mean(0)
        for layer, block in enumerate(blocks):
            rest = sum(
                made[part] if part in made else part.detach().double()
                for part in BESIDE[name](block)
            )
            assert actual.rest[row, layer] == pytest.approx(float(rest @ along), abs=near)
        entered = stream_before_the_norm(model, ids[: question.at + 1])
        assert actual.total()[row] == pytest.approx(float(entered @ along), abs=near)
    assert np.abs(actual.rest).max() > 20 * near


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("name", ["bundled", "bundled-python", *checkpoints("headscope/induction")])
def test_contributions_sum_to_the_logits_of_every_bundled_model(name):
    model = load_model(name if "/" in name else f"headscope/{name}")
    check_sums(
        model, last_questions(model, tasks.make("induction", model.tokenizer, n=3, length=8))
    )


# No norm at the end; no attention; a gate behind it.
REFUSED = {"openai-gpt", "mamba", "qwen3_next"}


@pytest.mark.requirement("C6")
@pytest.mark.parametrize(
    "name", [each for each in CONFIGS if each not in (*MASKED, *PLAIN, *PAIRED)]
)
def test_contributions_sum_to_the_logits_of_every_architecture(name):
    draw = np.random.default_rng(0)
    ids = [tuple(draw.integers(3, 64, 12).tolist()) for _ in range(2)]
    questions = [(EncodedQuestion(at, (5, 9), (7,), ()),) for at in (11, 8)]
    encoded = EncodedTask("random", "logit_difference", ids, ids, questions, ({}, {}))
    if name in REFUSED:
        with pytest.raises((NotApplicable, UnsupportedModel)):
            direct_logit_attribution.attribute(load_model(uneven(build(name), 0.1)), encoded)
        return
    check_sums(load_model(uneven(build(name), 0.1)), encoded)


def normed(stream):
    return (stream - stream.mean()) / np.sqrt(stream.var() + 1e-5)


def written_before(ids, at):
    """The stream of the circuit before its second layer: word, place, the word before."""
    streams = np.zeros((at + 1, HEADS * SIZE))
    for place in range(at + 1):
        streams[place, [TOKEN + ids[place], PLACE + place]] = 1.0
    words = np.array([normed(stream)[TOKEN : TOKEN + len(WORDS)] for stream in streams])
    streams[:, BEFORE : BEFORE + len(WORDS)] += words[[0, *range(at)]] / 16
    return streams


@pytest.mark.requirement("C6")
def test_tokens_of_the_induction_head_have_the_closed_form(circuit):
    """L1H0 writes 1/13 of the word of the token it attends to, which the unembedding doubles."""
    encoded = last_questions(circuit, repeated(n=2, length=6))
    for row, (question,) in enumerate(encoded.questions):
        opened = direct_logit_attribution.of_prompt(Readout(circuit), encoded, row)
        ids, at = opened.ids, question.at
        source = list(ids).index(ids[at]) + 1
        streams = written_before(ids, at)
        word = normed(streams[source])[TOKEN : TOKEN + len(WORDS)]
        last = streams[at]
        last[OUT : OUT + len(WORDS)] += word / 13
        (answer,), (wrong,) = question.answer_ids, question.wrong_ids
        assert ids[source] == answer
        written = 2 / 13 * (word[answer] - word[wrong])
        through = written / np.sqrt(last.var() + 1e-5)
        # The token holds more than 0.999 of the weight.
        assert opened.before[INDUCTION][source] == pytest.approx(written, rel=1e-3)
        assert opened.after[INDUCTION][source] == pytest.approx(through, rel=1e-3)
        others = np.delete(opened.after[INDUCTION], source)
        assert np.abs(others).max() < 1e-3 * through


@pytest.mark.requirement("C6")
def test_the_relevance_of_tokens_is_their_share_of_the_logit(bundled):
    encoded = ablation.encode_task(bundled, tasks.make("ioi", bundled.tokenizer, n=2))
    target = of_task(encoded)[1]
    relevance = method("logit_contributions").relevance(Trace(bundled, target))
    opened = direct_logit_attribution.of_prompt(Readout(bundled), encoded, 1)
    np.testing.assert_allclose(relevance, opened.after.sum((0, 1)), atol=1e-5)
    result = runner.execute("logit_attribution", bundled, n=2, options={"prompt": 1})
    assert result["token_contribution"].sum() == pytest.approx(
        float(result["head_token_contribution"].sum()), abs=1e-6
    )


def test_direct_logits_stand_beside_ablation_on_the_bundled_model(bundled):
    result = runner.execute("logit_attribution", bundled, n=8)
    assert result.attrs["sum_gap"] < 1e-4 * float(np.abs(result["logit_difference"]))
    assert result["component_before_norm"].sum() == pytest.approx(
        float(result["direct_before_norm"].sum() + result["component_before_norm"][[0, 2, 3]].sum())
    )
    rho = float(result["direct_vs_ablation"])
    assert f"Spearman ρ {rho:#.3g}" in result.attrs["note"]
    agrees = float(result["direct_vs_ablation_lower"]) > 0
    assert result.attrs["verdict"] == ("supported" if agrees else "disagreement")
    assert -1 <= float(result["direct_vs_ablation_lower"]) <= rho + 0.3
