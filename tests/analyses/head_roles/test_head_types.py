import numpy as np
import pytest
from constructed import DUPLICATE, INDUCTION, PREVIOUS, SINK, repeated
from refusals import check_message

from headscope.analyses import head_types
from headscope.probes import capture

STATS = (*head_types.NEEDS, "pattern")


@pytest.fixture(scope="module")
def task():
    return repeated(n=16, length=12)


@pytest.fixture(scope="module")
def captured(circuit, task):
    return capture(circuit, task, stats=STATS, targets=head_types.TARGETS)


@pytest.fixture(scope="module")
def result(circuit, task, captured):
    return head_types.run(captured, circuit, task, draws=6)


def test_every_constructed_head_is_named_by_its_type(result):
    for name, (layer, head) in (
        ("previous_token", PREVIOUS), ("bos", SINK), ("duplicate_token", DUPLICATE),
        ("induction", INDUCTION),
    ):  # fmt: skip
        scores = result[name].values
        assert scores[layer, head] > 0.999, name
        assert np.unravel_index(scores.argmax(), scores.shape) == (layer, head), name
        others = np.delete(scores.ravel(), np.ravel_multi_index((layer, head), scores.shape))
        # L1H0 rests on <bos> as long as nothing is repeated, half of the time.
        assert others.max() < (0.6 if name == "bos" else 0.2), name
        if name != "bos":
            assert result.attrs["heads_by_type"][name] == [f"L{layer}H{head}"]
    assert result.attrs["heads_by_type"]["bos"] == ["L0H1", "L1H0"]


def test_the_causal_check_names_the_heads_and_agrees(result):
    intact, without, before, others = result["induction_accuracy"].values
    assert (intact, without) == (1.0, 0.0)
    # The induction head reads what the previous-token head writes.
    assert before == 0.0
    ablated = ("induction heads", "previous-token heads", "random other heads")
    assert list(result["condition"].values) == ["intact", *(f"{one} ablated" for one in ablated)]
    draws = result.attrs["causal"]["heads"]["random other heads ablated"]
    spoiled = np.mean([draw == ["L0H0"] for draw in draws])
    assert np.isclose(others, 1 - spoiled)
    assert result.attrs["verdict"] == "supported"


@pytest.mark.parametrize("convention", ["headvis", "transformer_lens"])
def test_scores_agree_with_the_pattern(circuit, task, captured, convention):
    result = head_types.run(captured, circuit, task, convention=convention, draws=1)
    patterns = captured["pattern"].values.astype(float)
    ids = captured["token_id"].values
    size = ids.shape[1]
    expected = {name: [] for name in ("previous_token", "duplicate_token", "induction", "bos")}
    for weights, tokens in zip(patterns, ids, strict=True):
        earlier = np.tril(tokens[:, None] == tokens[None, :], -1)
        # TransformerLens' detection patterns: subdiagonal, duplicates, duplicates shifted by one.
        shifted = np.roll(earlier, 1, axis=1)
        shifted[:, 0] = False
        shifted = np.tril(shifted, -1)
        first = np.zeros((size, size), bool)
        first[1:, 0] = True
        detection = {
            "previous_token": np.eye(size, k=-1, dtype=bool),
            "duplicate_token": earlier,
            "induction": shifted,
            "bos": first,
        }
        for name, wanted in detection.items():
            hit = (weights * wanted).sum((-2, -1))
            rows = size if convention == "transformer_lens" else wanted.any(-1).sum()
            expected[name].append(hit / rows)
    for name, scores in expected.items():
        np.testing.assert_allclose(result[name].values, np.mean(scores, axis=0), atol=1e-5)


def test_bad_input_is_refused(circuit, task, captured):
    check_message("induction", head_types.run, captured.sel(target=["duplicate"]), circuit, task)
    check_message("offset 1", head_types.run, captured.sel(offset=[0]), circuit, task)


def test_a_model_that_cannot_do_the_task_gives_no_verdict(random_llama, task):
    cap = capture(random_llama, task, stats=head_types.NEEDS, targets=head_types.TARGETS)
    result = head_types.run(cap, random_llama, task, draws=1)
    assert result.attrs["heads_by_type"]["induction"] == []
    assert result.attrs["verdict"] == "too_few"
