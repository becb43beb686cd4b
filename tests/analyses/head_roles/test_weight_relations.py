"""Relations that weights hold: a planted head is named with its pairs, a random model has none."""

import copy

import numpy as np
import pytest
import torch

from headscope.analyses import weight_relations
from headscope.analyses._measurements import relation_words
from headscope.probes import capture, load_model


def run(model, **options):
    held = capture(model, [[0, 5, 6]], stats=("lse",))
    return weight_relations.run(held, model, **options)


@torch.no_grad()
def planted(bundled):
    """The bundled model with a first-layer head that writes what it reads."""
    module = copy.deepcopy(bundled.module)
    attention, table = module.model.layers[0].self_attn, module.lm_head.weight.float()
    size, head = attention.head_dim, 6
    group = head // (bundled.heads // bundled.kv_heads)
    # The directions in which words differ most, read by the values and written by the head.
    known, _ = relation_words.relations(bundled)
    words = torch.tensor([source for source, _ in known["copying"]])
    embedded = module.model.layers[0].input_layernorm(module.model.embed_tokens.weight[words])
    basis = torch.linalg.svd(embedded - embedded.mean(0), full_matrices=False)[2][:size]
    written = torch.linalg.lstsq(embedded @ basis.T, table[words]).solution
    attention.v_proj.weight[group * size : (group + 1) * size] = basis
    attention.o_proj.weight[:, head * size : (head + 1) * size] = written.T
    return load_model(module, tokenizer=bundled.tokenizer)


def test_a_planted_copying_head_is_named_with_its_pairs(bundled):
    result = run(planted(bundled))
    score, lower = (result[f"copying{end}"].values for end in ("", "_lower"))
    assert score[0, 6] > 0.9
    assert lower[0, 6] > result["copying"].attrs["null"]
    assert result.attrs["heads_by_relation"]["copying"][0] == "L0H6"
    pairs = [pair.split(" → ") for pair in result.attrs["descriptions"]["L0H6"].split(", ")]
    assert all(source == target for source, target in pairs)
    assert result.attrs["verdict"] == "supported"


def test_the_sign_of_the_output_turns_copying_to_suppression(bundled):
    model = planted(bundled)
    found = run(model)
    with torch.no_grad():
        size = model.module.model.layers[0].self_attn.head_dim
        model.module.model.layers[0].self_attn.o_proj.weight[:, 6 * size : 7 * size] *= -1
    turned = run(model)
    np.testing.assert_allclose(turned["copying_suppression"][0, 6], found["copying"][0, 6])
    assert float(turned["copying"][0, 6]) == 0


def test_a_random_model_holds_no_relation(bundled):
    module = copy.deepcopy(bundled.module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.02, generator=generator)
    result = run(load_model(module, tokenizer=bundled.tokenizer))
    assert result.attrs["verdict"] == "not_supported"
    assert result.attrs["heads_by_relation"] == {}


def test_relations_that_the_tokenizer_splits_are_left_out_by_name(bundled):
    result = run(bundled)
    assert "country_capital" in result.attrs["left_out"]
    assert "country_capital" not in result
    with pytest.raises(Exception, match="pairs"):
        run(bundled, pairs=5)
