"""Relations that weights hold: a planted head is named with its pairs, a random model has none."""

import copy

import numpy as np
import pytest
import torch
from constructed_writers import (
    CAPITALS,
    COUNTRIES,
    KNOWS,
    RAISED,
    SILENT,
    SOME,
    WRONG,
    relating,
)

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


@pytest.mark.requirement("C7")
def test_a_planted_relation_is_found_and_words_raised_for_all_are_none():
    model = relating()
    result = run(model, pairs=len(COUNTRIES))
    score = result["country_capital"].values
    assert score[KNOWS] == 1.0
    # Many targets among the first, whatever the source: as many with shuffled targets.
    assert score[SOME] == pytest.approx(RAISED / len(COUNTRIES))
    assert score[WRONG] == score[SILENT] == 0.0
    assert result.attrs["heads_by_relation"] == {"country_capital": ["L0H0"]}
    assert 0 < result["country_capital"].attrs["null"] < 0.2
    capitals = dict(zip(COUNTRIES, CAPITALS, strict=True))
    head, pairs = result.attrs["examples"]["country_capital"].split(": ")
    assert head == "L0H0"
    described = result.attrs["descriptions"]["L0H0"]
    for pair in (*pairs.split(", "), *described.split(", ")):
        source, target = pair.split(" → ")
        assert capitals[source] == target


def test_no_shuffle_reaches_the_planted_relation_and_its_null_is_exact():
    hits = np.zeros((30, 30, 1, 2))
    hits[..., 0, 0] = np.eye(30)  # knows all pairs
    hits[:, :10, 0, 1] = 1  # raises ten targets for all sources
    excess, null = weight_relations._null(hits, 500, 2, np.random.default_rng(0))
    np.testing.assert_allclose(excess, [[1.0, 0.0]], atol=1e-9)
    assert null == pytest.approx(0, abs=1e-9)
    hits[:15, :, 0, 1] = 0  # whether a source of the other half meets one of the ten is chance
    excess, null = weight_relations._null(hits, 500, 2, np.random.default_rng(0))
    assert excess[0, 1] == pytest.approx(-15 * 10 / 29 / 30, abs=0.01)
    assert 0.03 < null < 0.3


def test_a_planted_copying_head_is_named_with_its_pairs(bundled):
    result = run(planted(bundled))
    score, lower = (result[f"copying{end}"].values for end in ("", "_lower"))
    assert score[0, 6] > 0.9
    assert lower[0, 6] > result["copying"].attrs["null"]
    assert result.attrs["heads_by_relation"]["copying"][0] == "L0H6"
    shown = result.attrs["examples"]["copying"].removeprefix("L0H6: ")
    pairs = [pair.split(" → ") for pair in shown.split(", ")]
    assert all(source == target for source, target in pairs)
    assert result.attrs["verdict"] == "supported"


def test_the_sign_of_the_output_turns_copying_to_suppression(bundled):
    model = planted(bundled)
    result = run(model)
    with torch.no_grad():
        size = model.module.model.layers[0].self_attn.head_dim
        model.module.model.layers[0].self_attn.o_proj.weight[:, 6 * size : 7 * size] *= -1
    turned = run(model)
    np.testing.assert_allclose(turned["copying_suppression"][0, 6], result["copying"][0, 6])
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
