import copy

import numpy as np
import pytest
import torch
from constructed import PREVIOUS, SINK
from refusals import check_refusal
from scipy.spatial.distance import jensenshannon

from headscope.analyses import similarity
from headscope.analyses.qk_geometry import _signatures
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A17")

KEEP = ("q", "k", "z")
IDS = [[0, *np.random.default_rng(seed).integers(5, 35, 30).tolist()] for seed in range(3)]


def captured(model, ids=IDS):
    return capture(model, ids, stats=("lse", "pattern"), keep=KEEP)


def test_divergences_are_those_of_scipy():
    shares = np.random.default_rng(0).dirichlet(np.ones(7) / 3, size=(4, 5))
    result = _signatures.divergences(shares)
    for one in range(4):
        for other in range(4):
            expected = np.mean([jensenshannon(*pair, base=2) ** 2 for pair in
                                zip(shares[one], shares[other], strict=True)])  # fmt: skip
            assert result[one, other] == pytest.approx(expected, abs=1e-9)


def test_pooled_rows_hold_the_whole_weight_and_never_diverge_more_than_the_maps(circuit):
    cap = captured(circuit)
    places = np.arange(8, 31)
    pooled = _signatures.of_prompt(cap, 1, places)
    np.testing.assert_allclose(pooled.sum(-1), 1.0, atol=1e-4)
    maps = cap["pattern"].values[1][:, :, places].astype(float)
    whole = _signatures.divergences(maps.reshape(8, len(places), -1))
    few = _signatures.divergences(pooled.reshape(8, len(places), -1))
    assert (few <= whole + 1e-5).all()
    # Up to so many tokens every key has a cell of its own.
    np.testing.assert_allclose(few, whole, atol=1e-4)


def test_long_rows_keep_the_first_and_the_nearest_keys_apart():
    number = _signatures.cells(np.array([500, 999]), 1000)
    for row, place in enumerate((500, 999)):
        own = number[row, place - 7 : place + 1].tolist()
        assert len(set(own)) == 8
        assert (number[row] == number[row, 0]).sum() == 1
        assert all((number[row] == one).sum() == 1 for one in own)
        assert len(set(number[row].tolist())) <= 1 + 16 + 32


def test_heads_of_one_kind_are_one_group(circuit):
    result = similarity.run(captured(circuit), circuit, clusters=4, swapped=2)
    groups = result["cluster"].values
    uniform = {groups[head] for head in ((0, 2), (1, 1), (1, 2), (1, 3))}
    assert len(uniform) == 1
    # L1H0 rests on the first token where no word is repeated, as the sink head does.
    others = {groups[PREVIOUS], groups[SINK]}
    assert len(others) == 2
    assert not uniform & others
    assert float(result["silhouette"]) > 0.5
    heads = result["one"].values.tolist()
    apart = result["pattern_divergence"].values
    assert apart[heads.index("L1H1"), heads.index("L1H2")] < 1e-6
    assert apart[heads.index("L0H0"), heads.index("L0H1")] > 0.9
    assert result["nearest_in_layer"].values[1, 1] < 1e-6


def test_a_head_that_is_copied_is_found_by_its_rows_and_by_its_outputs(random_llama):
    module = copy.deepcopy(random_llama.module)
    attention = module.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_proj.weight[8:16] = attention.q_proj.weight[:8]
        attention.o_proj.weight[:, 8:16] = attention.o_proj.weight[:, :8]
        # Heads 2 and 3 look the same way but write the opposite.
        attention.q_proj.weight[24:32] = attention.q_proj.weight[16:24]
        attention.o_proj.weight[:, 24:32] = -attention.o_proj.weight[:, 16:24]
    model = load_model(module, tokenizer=random_llama.tokenizer)
    result = similarity.run(captured(model), model, clusters=3)
    heads = result["one"].values.tolist()
    names = [heads.index(f"L1H{head}") for head in range(4)]
    apart, alike = (result[name].values for name in ("pattern_divergence", "output_similarity"))
    for first, second, cosine in ((0, 1, 1.0), (2, 3, -1.0)):
        assert apart[names[first], names[second]] == pytest.approx(0.0, abs=1e-9)
        assert alike[names[first], names[second]] == pytest.approx(cosine, abs=1e-5)
    assert result["alike_in_layer"].values[1, :2].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_heads_with_the_pattern_of_their_nearest_head_move_the_output_less(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=16, seed=2)
    result = similarity.run(captured(bundled, task), bundled)
    near, random = result["moved"].values
    assert near < 0.5 * random
    assert result.attrs["verdict"] == "supported"


def test_the_order_of_the_matrix_is_that_of_the_groups(circuit):
    result = similarity.run(captured(circuit), circuit, clusters=4)
    actual = [result["cluster"].values[int(name[1]), int(name[3])] for name in result["one"].values]
    assert actual == sorted(actual)
    assert (np.diff(np.bincount(np.array(actual, dtype=int))[1:]) <= 0).all()


def test_bad_input_is_refused(random_llama):
    check_refusal("clusters", similarity.run, captured(random_llama), random_llama, clusters=9)
