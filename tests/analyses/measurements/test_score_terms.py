"""Scores taken apart against the model's own, term by term against dense float64."""

import architectures
import numpy as np
import pytest
import torch
from architectures import CONFIGS
from constructed import INDUCTION, PREVIOUS, circuit, random_llama, repeated
from logit_parts import uneven
from refusals import check_refusal
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from headscope.analyses._measurements import score_directions
from headscope.analyses._measurements.score_terms import KEEP, Scores
from headscope.probes import capture, load_model
from headscope.probes.capturing.logit_terms import logit_terms

# Heads of these do not write straight into the stream: a norm takes the sum (BERT and its like).
# DeepSeek's compressed keys and Qwen3-Next's gated outputs are no known linear map.
UNKNOWN = (
    "bert", "roberta", "distilbert", "rembert", "roformer", "mpnet", "deepseek_v3", "qwen3_next",
)  # fmt: skip
# The first GPT is not followed, DeBERTa's bias is no function of the distance, Mamba has no map.
OTHERS = (
    "openai-gpt",
    "deberta",
    "deberta-v2",
    "mamba",
    *architectures.PLAIN,
    *architectures.PAIRED,
)
KNOWN = [family for family in CONFIGS if family not in (*UNKNOWN, *OTHERS)]
# A norm divides their queries and keys.
DIVIDED = {"olmo2", "qwen3", "qwen3_moe", "gemma3_text", "lfm2"}
TEXT = [3, 17, 5, 32, 17, 9, 30, 5, 11]


def seen(model, ids=TEXT):
    return capture(model, [ids], stats=("lse",), keep=KEEP)


@pytest.mark.requirement("E2")
@pytest.mark.parametrize("family", KNOWN)
def test_terms_sum_to_the_models_own_score(family):
    model = load_model(uneven(architectures.build(family), scale=0.3))
    result = seen(model)
    scores = Scores(model, len(TEXT))
    layer = model.geometry.attending[-1]
    for head in range(model.heads):
        for query, key in ((8, 2), (5, 5), (3, 0)):
            split = scores.split(result, (layer, head), 0, query, key)
            own = float(logit_terms(result, layer, head, query, key)["score"])
            assert split.terms.shape == (len(split.sources),) * 2
            assert abs(split.terms.sum() - own) <= 1e-5 * split.size
            if family not in DIVIDED:
                np.testing.assert_allclose(split.factors, 1, atol=1e-4)
            for directions in (
                score_directions.singular(split),
                score_directions.random_basis(split, np.random.default_rng(0)),
            ):
                assert abs(directions.terms.sum() - own) <= 1e-5 * split.size


@pytest.mark.parametrize("family", UNKNOWN)
def test_what_is_no_known_map_of_the_stream_is_refused(family):
    model = load_model(uneven(architectures.build(family), scale=0.3))
    check_refusal("model", Scores, model, len(TEXT))


def dense(model, layer, head, query, key):
    """Every term of a score of a Llama, by its own modules in float64, and the form between."""
    module = model.module.double()
    ids = torch.tensor([TEXT])
    written = {}

    def keep(name):
        def hook(part, args, result):
            written[name] = args[0][0].detach() if name[0] == "z" else result[0].detach()

        return hook

    hooks = [module.model.embed_tokens.register_forward_hook(keep(("embedding",)))]
    for number, block in enumerate(module.model.layers):
        hooks.append(block.self_attn.o_proj.register_forward_hook(keep(("z", number))))
        hooks.append(block.mlp.register_forward_hook(keep(("mlp", number))))
    with torch.no_grad():
        module(ids)
    for hook in hooks:
        hook.remove()
    parts = [written["embedding",]]
    size, group = model.head_size, model.heads // model.kv_heads
    for number in range(layer):
        z, outward = written["z", number], module.model.layers[number].self_attn.o_proj.weight
        for one in range(model.heads):
            inside = slice(one * size, (one + 1) * size)
            parts.append(z[:, inside] @ outward[:, inside].T)
        parts.append(written["mlp", number])
    parts = torch.stack(parts).detach()
    block = module.model.layers[layer]
    norm, attention = block.input_layernorm, block.self_attn
    stream = parts.sum(0)
    rms = (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    entered = (parts * rms * norm.weight).detach()
    q = entered @ attention.q_proj.weight[head * size : (head + 1) * size].T.detach()
    wide = head // group
    k = entered @ attention.k_proj.weight[wide * size : (wide + 1) * size].T.detach()
    cos, sin = module.model.rotary_emb(entered, torch.arange(len(TEXT))[None])
    q, k = apply_rotary_pos_emb(q[:, None], k[:, None], cos.double(), sin.double())
    terms = q[:, 0, query] @ k[:, 0, key].T * attention.scaling
    turns = []
    for row in range(size):
        basis = torch.zeros(1, 1, len(TEXT), size, dtype=torch.float64)
        basis[..., row] = 1
        turns.append(apply_rotary_pos_emb(basis, basis, cos.double(), sin.double())[0][0, 0])
    turn = torch.stack(turns)  # (channel, position, size)
    w_q = (attention.q_proj.weight[head * size : (head + 1) * size] * norm.weight).T.detach()
    w_k = (attention.k_proj.weight[wide * size : (wide + 1) * size] * norm.weight).T.detach()
    form = (w_q @ turn[:, query]) @ (w_k @ turn[:, key]).T * attention.scaling
    return terms.numpy(), form.numpy()


@pytest.mark.requirement("E2")
def test_terms_and_singular_values_are_those_of_dense_weights():
    model = load_model(uneven(random_llama().module, scale=0.3))
    result = seen(model)
    scores = Scores(model, len(TEXT))
    for head, query, key in ((0, 7, 2), (3, 8, 8), (2, 6, 5)):
        split = scores.split(result, (1, head), 0, query, key)
        model.module.double()
        terms, form = dense(model, 1, head, query, key)
        model.module.float()
        np.testing.assert_allclose(split.terms[:-1, :-1], terms, atol=1e-5 * split.size)
        assert np.abs(split.terms[-1]).max() == 0  # a Llama has no biases
        values = np.linalg.norm(split.form @ score_directions.singular(split).right, axis=0)
        expected = np.linalg.svd(form, compute_uv=False)[: len(values)]
        np.testing.assert_allclose(values, expected, rtol=1e-4)
        assert len(values) <= model.head_size


def test_vectors_sum_to_the_stream():
    for family in ("gpt2", "gemma3_text", "lfm2", "opt"):
        model = load_model(uneven(architectures.build(family), scale=0.3))
        result, scores = seen(model), Scores(model, len(TEXT))
        layer = model.layers - 1
        names = scores.sources(layer)
        total = sum(scores.vector(result, 0, 4, source) for source in names[:-1])
        stream = result["resid"].isel(prompt=0, boundary=layer, query=4).values
        np.testing.assert_allclose(total.numpy(), stream, atol=1e-4)
        assert (str(names[1]) == "position embedding") == (family in ("gpt2", "opt"))
        check_refusal("source", scores.vector, result, 0, 4, names[-1])


@pytest.mark.requirement("E2")
def test_the_score_of_an_induction_head_is_its_token_against_what_the_head_before_wrote():
    model, task = circuit(), repeated(n=1, length=8)
    result = capture(model, task, stats=("lse",), keep=KEEP)
    scores = Scores(model, result.sizes["query"])
    # Token 11 is the second of the second half; it looks for what follows its first copy.
    split = scores.split(result, INDUCTION, 0, 10, 3)
    names = [str(source) for source in split.sources]
    at = names.index("embedding"), names.index("L{}H{}".format(*PREVIOUS))
    assert result["token_id"].values[0, 10] == result["token_id"].values[0, 2]
    assert split.terms[at] > 0.95 * split.score > 0
    elsewhere = scores.split(result, INDUCTION, 0, 10, 5)
    assert abs(elsewhere.terms[at]) < 0.05 * split.terms[at]


def test_smallest_sets_and_numbers_of_terms():
    terms = np.array([5.0, -2.0, 1.0, 4.0])
    assert score_directions.smallest_set(terms, 1.0).tolist() == [0, 3]
    assert score_directions.smallest_set(terms, 0.6).tolist() == [0]
    assert score_directions.effective_number(np.array([[1.0, 1, 1], [7, 0, 0]])).tolist() == [3, 1]
