"""Relations read from weights alone, against a planted permutation and dense float64 products."""

import copy

import numpy as np
import pytest
import torch
import transformers
from refusals import check_refusal

from headscope.analyses._measurements import relation_words, vocabulary_map
from headscope.probes import load_model

WORDS = 24
TURNED = torch.randperm(WORDS, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def permuting(sign=1.0):
    """One head in two, at the first layer, whose map is the permutation; the other's is zero."""
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=2 * WORDS, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    attention, one = module.model.layers[0].self_attn, torch.eye(WORDS)
    module.model.embed_tokens.weight.copy_(torch.cat((one, torch.zeros_like(one)), 1))
    attention.v_proj.weight.copy_(torch.cat((one, torch.zeros_like(one)), 1))
    out = torch.zeros(2 * WORDS, 2 * WORDS)
    out[:WORDS, WORDS:] = sign * one  # head 1
    attention.o_proj.weight.copy_(out)
    table = torch.zeros(WORDS, 2 * WORDS)
    table[TURNED, torch.arange(WORDS)] = 1
    module.lm_head.weight.copy_(table)
    return load_model(module)


@pytest.mark.parametrize("chunk", [2**24, WORDS * 80])
def test_a_head_that_permutes_words_has_the_relation_and_no_shuffled_one(chunk, monkeypatch):
    monkeypatch.setattr(vocabulary_map, "CELLS", chunk)
    pairs = list(enumerate(TURNED.tolist()))
    targets = torch.tensor([[to for _, to in pairs], *relation_words.shuffled(pairs, 3, 0)])
    assert (targets[1:] != targets[0]).all()
    for sign, side in ((1.0, "above"), (-1.0, "below")):
        found = {head: it for _, head, it in
                 vocabulary_map.ranks(permuting(sign), range(WORDS), targets)}  # fmt: skip
        rank = getattr(found[1], side)
        assert (rank[0] == 0).all()
        assert not (rank[1:] == 0).all(1).any()
        if sign > 0:
            np.testing.assert_array_equal(found[1].best, TURNED.numpy())


@pytest.mark.parametrize("layer", [0, 2])
def test_ranks_are_those_of_dense_float64_products(bundled, layer, monkeypatch):
    monkeypatch.setattr(vocabulary_map, "CELLS", 2**14)
    generator = torch.Generator().manual_seed(0)
    sources = torch.randint(bundled.vocabulary, (40,), generator=generator)
    targets = torch.randint(bundled.vocabulary, (2, 40), generator=generator)
    found = {(at, head): it for at, head, it in
             vocabulary_map.ranks(bundled, sources.tolist(), targets)}  # fmt: skip
    base = copy.deepcopy(bundled.module).double()
    first, block = base.model.layers[0], base.model.layers[layer]
    size, groups = block.self_attn.head_dim, bundled.heads // bundled.kv_heads
    with torch.no_grad():
        rows = base.model.embed_tokens.weight[sources]
        if layer:
            rows = first.mlp(first.post_attention_layernorm(rows))
        rows = block.self_attn.v_proj(block.input_layernorm(rows)).view(40, -1, size)
        for head in range(bundled.heads):
            out = block.self_attn.o_proj.weight[:, head * size : (head + 1) * size]
            written = rows[:, head // groups] @ out.T * base.model.norm.weight
            logits = written @ base.lm_head.weight.T
            wanted = logits.gather(1, targets.T)
            above = (logits[:, None] > wanted[..., None]).sum(-1).T.numpy()
            got = found[layer, head]
            assert (np.abs(got.above - above) <= 1).mean() > 0.95
            assert (got.best == logits.argmax(-1).numpy()).mean() > 0.97
            np.testing.assert_allclose(got.logit, logits.amax(-1), rtol=1e-3)


def test_relations_without_enough_single_tokens_are_refused_by_name(bundled):
    found, refused = relation_words.relations(bundled)
    assert {"copying", "name_copying"} <= set(found)
    assert "country_capital" in refused
    bare = load_model(copy.deepcopy(bundled.module))
    check_refusal("model", relation_words.relations, bare)
