import numpy as np
import pytest
from constructed import INDUCTION, UNIFORM
from refusals import check_refusal

from headscope.analyses._runtime.runner import execute
from headscope.analyses.token_groups import _facts
from headscope.probes.prompts import tasks


@pytest.fixture(scope="module")
def planted(circuit):
    return execute("distractors", circuit, n=16, options={"facts": "2,4,8", "best": 1})


@pytest.mark.requirement("A19")
def test_an_even_head_disperses_with_slope_one(planted):
    head = dict(zip(("layer", "head"), UNIFORM, strict=True))
    assert float(planted["dispersion"].sel(head)) == pytest.approx(1.0, abs=1e-4)
    assert float(planted["relevance"].sel(head)) == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_allclose(planted["fact_entropy"].sel(head), 1.0, atol=1e-5)
    # Key and value of a fact, of <bos>, four words a fact and two of the question.
    expected = [2 / (1 + 4 * count + 2) for count in (2, 4, 8)]
    np.testing.assert_allclose(planted["asked_mass"].sel(head), expected, rtol=1e-4)


@pytest.mark.requirement("A19")
def test_the_head_that_reads_the_asked_fact_keeps_attending_to_it(planted):
    head = dict(zip(("layer", "head"), INDUCTION, strict=True))
    np.testing.assert_allclose(planted["asked_mass"].sel(head), 1.0, atol=1e-2)
    assert abs(float(planted["dispersion"].sel(head))) < 0.01
    assert float(planted["relevance"].sel(head)) > 8
    assert planted.attrs["heads_by_type"] == {"asked fact": ["L1H0"]}


@pytest.mark.requirement("A19")
def test_hiding_the_asked_fact_costs_the_answer_and_another_of_its_size_does_not(planted):
    right = planted["accuracy"]
    assert (right.sel(condition=["intact", "another fact hidden"]) == 1).all()
    assert (right.sel(condition="asked fact hidden from other heads") == 1).all()
    for condition in ("asked fact hidden", "asked fact hidden from top heads"):
        assert float(right.sel(condition=condition).max()) < 1
        lost = planted["answer_loss"].sel(condition=condition)
        assert float((lost - planted["answer_loss"].sel(condition="intact")).min()) > 1
    assert planted.attrs["verdict"] == "supported"


@pytest.fixture(scope="module")
def among_shots(circuit):
    return execute("distractors", circuit, n=16, options={"shots": "1,2,3", "best": 1})


@pytest.mark.requirement("A19")
def test_shots_distract_an_even_head_and_not_the_one_that_reads_the_asked_fact(among_shots):
    even, reader = (
        among_shots.sel(dict(zip(("layer", "head"), head, strict=True)))
        for head in (UNIFORM, INDUCTION)
    )
    # Two tokens of the asked fact among <bos>, ten words of own facts and question, 12 a shot.
    assert among_shots["shots"].values.tolist() == [1, 2, 3]
    expected = [2 / (1 + 10 + 12 * count) for count in (1, 2, 3)]
    np.testing.assert_allclose(even["asked_mass"], expected, rtol=1e-4)
    assert float(even["dispersion"]) == pytest.approx(1.0, abs=1e-4)
    assert float(even["relevance"]) == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_allclose(even["fact_entropy"], 1.0, atol=1e-5)
    np.testing.assert_allclose(reader["asked_mass"], 1.0, atol=1e-2)
    assert abs(float(reader["dispersion"])) < 0.01
    assert float(reader["relevance"]) > 8
    # Hiding a whole shot costs nothing, hiding the asked fact the answer.
    right = among_shots["accuracy"]
    assert (right.sel(condition=["intact", "another fact hidden"]) == 1).all()
    assert float(right.sel(condition="asked fact hidden").max()) < 1
    assert among_shots.attrs["verdict"] == "supported"


def test_a_model_that_recalls_nothing_is_inconclusive(random_llama):
    result = execute("distractors", random_llama, n=3, options={"facts": "2,4", "best": 1})
    assert result.attrs["note"].startswith("The model does not recall")
    assert result.attrs["verdict"] == "too_few"


def test_masses_add_up_whatever_stands_between_the_facts(bundled):
    options = {"facts": "2,4", "length": 60, "best": 1}
    result = execute("distractors", bundled, n=2, options=options)
    np.testing.assert_allclose(result["group_mass"].sum("group"), 1.0, atol=1e-5)
    task = tasks.make("recall", bundled.tokenizer, 2, 0, pairs=3, queries=1, length=60)
    facts = _facts.Facts(bundled, task)
    words = bundled.to_str_tokens(facts.ids[1])
    asked = facts.units[1][facts.asked_facts[1]]
    assert [words[at] for at in asked] == [
        words[-1], task.prompts[1].questions[0].answers[0].strip(),
    ]  # fmt: skip


def test_what_cannot_grow_is_refused(bundled):
    task = tasks.make("needle", tokenizer=bundled.tokenizer, n=2)
    check_refusal("task", execute, "distractors", bundled, task=task)
    for facts in ("4", "1,2"):
        check_refusal("facts", execute, "distractors", bundled, n=2, options={"facts": facts})
    check_refusal("best", execute, "distractors", bundled, n=2, options={"best": 17})
    check_refusal("shots", execute, "distractors", bundled, n=2, options={"shots": "3"})
