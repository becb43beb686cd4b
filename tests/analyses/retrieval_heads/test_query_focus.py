import numpy as np
import pytest
from constructed import DUPLICATE, INDUCTION, SINK
from refusals import check_refusal

from headscope.analyses._runtime.runner import execute
from headscope.analyses.retrieval_heads._documents import document_scores, documents
from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("B7")


def test_low_outliers_of_a_document_are_left_out_of_its_sum():
    flat, low = [0.1] * 9, -1.0
    weights = np.array([[[*flat, low, 0.3, 0.1]]])
    first, second = document_scores(weights, [range(10), range(10, 12)])[:, 0, 0]
    # The mean is -0.01 and the spread 0.348, so the cut is at -0.706, above the tenth token.
    assert first == pytest.approx(0.9)
    assert second == pytest.approx(0.4)
    assert document_scores(np.full((1, 1, 4), 0.25), [range(4)])[0, 0, 0] == pytest.approx(1.0)


def test_sentences_are_documents():
    assert documents("a b.") == [(0, 4)]
    assert documents("a b") == [(0, 3)]
    assert documents("pi is 3.14. yes") == [(0, 11), (11, 15)]


def test_the_planted_head_follows_the_question(circuit):
    task = tasks.make("recall", circuit.tokenizer, 6, pairs=4)
    options = {"query_words": 1, "best": 1, "draws": 7, "null_query": "nothing"}
    result = execute("query_focus", circuit, task=task, options=options)
    score, plain = result["qr_score"].values, result["qr_plain"].values
    assert score[INDUCTION] > 0.999
    assert abs(score[SINK]) < 1e-3
    # The duplicate head attends to the key in the same document, and carries nothing.
    assert score[DUPLICATE] > 0.5
    assert np.abs(np.delete(score.ravel(), [3, 4])).max() < 0.01
    # The uniform heads attend to its 4 of <bos>, 4 × 4 and 2 words, whatever the question is.
    assert plain[1, 1] == pytest.approx(4 / 19, rel=1e-3)
    assert result["found"].values[0] == 1.0
    assert result["accuracy"].values[:2].tolist() == [1.0, 0.0]
    assert "1 of them unknown" in result["qr_score"].attrs["convention"]


def test_query_focused_heads_of_the_bundled_model_find_the_document_and_carry_the_answer(bundled):
    result = execute("query_focus", bundled, n=8, options={"draws": 3})
    assert set(result.attrs["heads_by_type"]["query-focused"]) == {
        "L3H0", "L3H1", "L3H4", "L3H5", "L3H7",
    }  # fmt: skip
    best, _, random = result["found"].values
    assert best == 1.0
    assert random < 0.5
    intact, without, others = result["accuracy"].values
    assert (intact, without) == (1.0, 0.0)
    assert others > 0.7


def test_bad_input_is_refused(bundled):
    check_refusal("n", execute, "query_focus", bundled, n=3)
    check_refusal("null_query", execute, "query_focus", bundled, n=4, options={"null_query": " "})
    with pytest.raises(HeadscopeError, match="two sentences or more"):
        execute("query_focus", bundled, task=tasks.make("induction", bundled.tokenizer, 4))
