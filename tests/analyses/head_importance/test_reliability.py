from dataclasses import replace

import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from constructed import random_llama as make_llama
from scipy.stats import spearmanr

from headscope.analyses import reliability
from headscope.analyses._interventions.random_weights import untrained
from headscope.analyses._runtime import runner
from headscope.analyses._stats import rank_correlation
from headscope.analyses.head_importance import _nulls
from headscope.probes import capture, load_model
from headscope.probes.prompts.tokens import encode


def run(model, task, **options):
    return reliability.run(capture(model, task, stats=(), keep=("z",)), model, task, **options)


@pytest.fixture(scope="module")
def compared(bundled):
    return runner.execute("reliability", bundled, n=6)


@pytest.mark.requirement("D1")
def test_the_circuit_alone_is_important(circuit):
    result = run(circuit, repeated(n=6, length=6))
    assert set(result.attrs["important_heads"]) == {"L0H0", "L1H0"}
    largest, shuffled, random = result["null_level"].values
    expected = np.zeros((2, 4))
    expected[PREVIOUS] = expected[INDUCTION] = 1.0
    np.testing.assert_allclose(result["margin"].values, expected - max(shuffled, random), atol=1e-6)
    assert largest == 1.0
    # Words are few, so that a prompt may by chance share an answer with another one.
    assert 0 <= shuffled < 0.3
    assert 0 <= random < 0.3
    # All but accuracy-blind methods put the same two heads first, so prompts do not matter.
    assert float(result["retest"].sel(ranking="mean ablation")) == pytest.approx(1.0)
    assert float(result["rank_agreement"].sel(one="zero ablation", other="mean ablation")) == 1.0
    assert "cannot be drawn again" in result.attrs["note"]
    assert "paraphrase_agreement" not in result


def test_a_model_with_random_weights_has_no_important_head():
    model = make_llama(seed=4)
    result = run(model, repeated(n=8, length=6), metric="logit_difference", random_weights=False)
    assert float(result["null_level"].values[1]) > 0
    assert len(result.attrs["important_heads"]) <= 1


def test_every_method_is_held_against_every_other(compared):
    table = compared["rank_agreement"]
    names = list(table["one"].values)
    assert {"mean ablation", "gate gradient", "denoising", "direct logits"} <= set(names)
    np.testing.assert_allclose(np.diag(table), 1)
    np.testing.assert_allclose(table.values, table.values.T)
    assert (compared["rank_agreement_lower"] <= compared["rank_agreement_upper"]).values.all()
    # Attribution patching is a good estimate here; the note names the pair that agrees least.
    assert float(table.sel(one="noising", other="noising attribution")) > 0.8
    flat = np.where(np.eye(len(names), dtype=bool), 9, table.values)
    row, column = np.unravel_index(int(flat.argmin()), flat.shape)
    assert names[row] in compared.attrs["note"]
    assert names[column] in compared.attrs["note"]


def test_another_draw_of_the_task_gives_nearly_the_same(compared):
    assert float(compared["paraphrase_agreement"].sel(ranking="noising")) > 0.7
    assert float(compared["retest"].sel(ranking="noising")) > 0.7
    again = compared["paraphrase_agreement"]
    assert (again < 1).all()  # equal prompts would agree exactly
    assert "Too few prompts (6 of 16)" in compared.attrs["note"]


def test_important_heads_are_those_above_both_nulls(compared):
    _, shuffled, random = compared["null_level"].values
    lower = compared["margin"].values + max(shuffled, random)
    named = {f"L{layer}H{head}" for layer, head in np.argwhere(lower > max(shuffled, random))}
    assert set(compared.attrs["important_heads"]) == named
    assert named


def test_split_halves_give_the_share_of_true_variance():
    # Heads with true scores and noise: reliability of the mean is σ²_true / (σ²_true + σ²_noise/n).
    generator = np.random.default_rng(0)
    true, count = 20 + generator.normal(size=(1, 40, 50)), 10
    samples = true + 3 * generator.normal(size=(count, 40, 50))
    mean, lower, upper = rank_correlation.split_half(samples, seed=0)
    # ρ of normal variables is a little below r: 6/π · asin(r/2).
    r = 1 / (1 + 9 / (count / 2))
    half = 6 / np.pi * np.arcsin(r / 2)
    assert mean == pytest.approx(2 * half / (1 + half), abs=0.03)
    assert lower < mean < upper
    assert np.isnan(rank_correlation.split_half(samples[:1], seed=0)).all()


def test_agreement_is_scipys_with_an_interval():
    generator = np.random.default_rng(1)
    one = generator.normal(size=(12, 3, 4)) + np.arange(12).reshape(3, 4)
    two = one + generator.normal(size=one.shape)
    one[:, 1, 2] = np.nan
    rho, lower, upper = rank_correlation.agreement(one, two, seed=0)
    known = np.abs(one.mean(0)).ravel(), np.abs(two.mean(0)).ravel()
    keep = ~np.isnan(known[0])
    assert rho == pytest.approx(spearmanr(known[0][keep], known[1][keep]).statistic)
    assert lower < rho <= upper + 0.05
    table = rank_correlation.matrix({"one": one, "two": two}, seed=0)
    np.testing.assert_allclose(table[:, 0, 1], (rho, lower, upper), atol=1e-12)


def test_shuffled_questions_keep_their_places_and_lose_their_answers(circuit):
    asked = encode(repeated(n=5, length=6), circuit.tokenizer).questions
    other = _nulls.shuffled(asked, seed=3)
    rows = [tuple(one.answer_ids for one in each) for each in asked]
    for before, after in zip(asked, other, strict=True):
        assert [one.at for one in before] == [one.at for one in after]
        given = tuple(one.answer_ids for one in after)
        assert given in rows
        assert given != tuple(one.answer_ids for one in before)


def test_untrained_models_differ_from_the_trained_one_and_leave_the_seed_alone(circuit):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = (untrained(circuit, 0, "random_weights") for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert first.geometry == circuit.geometry
    name = "transformer.h.0.attn.c_attn.weight"
    weights = [each.module.state_dict()[name] for each in (first, again, circuit)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    without = untrained(load_model(circuit, bos=False), 0, "random_weights")
    assert without.encode("note") == circuit.encode("note")[1:]


def test_one_prompt_calls_no_head_important(circuit):
    task = repeated(n=2, length=5)
    result = run(circuit, replace(task, prompts=task.prompts[:1]), random_weights=False)
    assert result.attrs["important_heads"] == []
    assert result.attrs["verdict"] in ("too_few", "disagreement")
    assert result["margin"].isnull().all()
