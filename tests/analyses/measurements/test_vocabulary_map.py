"""Relations read from weights alone, against a planted permutation and dense float64 products."""

import copy

import numpy as np
import pytest
import torch
import transformers
from refusals import check_refusal

from headscope.analyses._measurements import relation_words, vocabulary_map
from headscope.analyses._measurements.vocabulary_map import VocabularyMap
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
    for sign, side in ((1.0, "among_largest"), (-1.0, "among_smallest")):
        rows = VocabularyMap(permuting(sign)).rows(range(WORDS), TURNED.tolist(), 2)
        result = {head: it for _, head, it in rows}
        # A target for each source, and no other one; a head that writes nothing has none.
        assert torch.equal(getattr(result[1], side)(1), torch.eye(WORDS, dtype=torch.bool))
        assert not getattr(result[0], side)(1).any()


@pytest.mark.parametrize("layer", [0, 2])
def test_rows_are_those_of_dense_float64_products(bundled, layer, monkeypatch):
    monkeypatch.setattr(vocabulary_map, "CELLS", 2**14)
    generator = torch.Generator().manual_seed(0)
    sources, targets = torch.randint(bundled.vocabulary, (2, 40), generator=generator)
    rows = VocabularyMap(bundled).rows(sources.tolist(), targets.tolist(), 11)
    result = {(at, head): it for at, head, it in rows}
    base = copy.deepcopy(bundled.module).double()
    first, block = base.model.layers[0], base.model.layers[layer]
    size, groups = block.self_attn.head_dim, bundled.heads // bundled.kv_heads
    with torch.no_grad():
        entering = base.model.embed_tokens.weight[sources]
        if layer:
            entering = first.mlp(first.post_attention_layernorm(entering))
        values = block.self_attn.v_proj(block.input_layernorm(entering)).view(40, -1, size)
        for head in range(bundled.heads):
            out = block.self_attn.o_proj.weight[:, head * size : (head + 1) * size]
            written = values[:, head // groups] @ out.T * base.model.norm.weight
            logits = written @ base.lm_head.weight.T
            expected = logits[:, targets]
            above = (logits[:, None] > expected[..., None]).sum(-1)
            below = (logits[:, None] < expected[..., None]).sum(-1)
            got = result[layer, head]
            np.testing.assert_allclose(
                got.logits, expected, atol=1e-3 * float(expected.abs().max())
            )
            np.testing.assert_allclose(got.largest, logits.topk(11).values, rtol=1e-3)
            for first_few in (1, 10):
                hits = got.among_largest(first_few), got.among_smallest(first_few)
                for hit, rank in zip(hits, (above, below), strict=True):
                    assert (hit == (rank < first_few)).double().mean() > 0.99


def test_shuffles_give_no_source_its_own_target_and_are_uniform():
    places = relation_words.shuffled(6, 4000, np.random.default_rng(0))
    assert (places != np.arange(6)).all()
    assert (np.sort(places) == np.arange(6)).all()
    counts = np.array([np.bincount(column, minlength=6) for column in places.T])
    off = counts[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(off, 800, rtol=0.15)


def test_what_a_head_writes_most_from_is_what_its_map_is_largest_for(bundled):
    map_ = VocabularyMap(bundled)
    tokens = list(range(10, bundled.vocabulary))
    result = map_.salient(2, 1, tokens, 5)
    base = copy.deepcopy(bundled.module).double()
    first, block = base.model.layers[0], base.model.layers[2]
    size, group = block.self_attn.head_dim, bundled.kv_heads * 1 // bundled.heads
    with torch.no_grad():
        rows = base.model.embed_tokens.weight[tokens]
        rows = first.mlp(first.post_attention_layernorm(rows))
        value = block.self_attn.v_proj(block.input_layernorm(rows)).view(len(tokens), -1, size)
        written = value[:, group] @ block.self_attn.o_proj.weight[:, size : 2 * size].T
        best = written.norm(dim=-1).topk(5).indices
        logits = written * base.model.norm.weight @ base.lm_head.weight[tokens].T
    expected = [(tokens[at], tokens[int(logits[at].argmax())]) for at in best.tolist()]
    assert result == expected


def test_relations_without_enough_single_tokens_are_refused_by_name(bundled):
    result, refused = relation_words.relations(bundled)
    assert {"copying", "name_copying"} <= set(result)
    assert "country_capital" in refused
    bare = load_model(copy.deepcopy(bundled.module))
    check_refusal("model", relation_words.relations, bare)
