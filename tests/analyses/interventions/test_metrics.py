"""Task metrics against the same metrics computed by hand."""

import math

import numpy as np
import pytest
import torch
from constructed import WORDS
from refusals import check_refusal
from word_prompts import Asked, word_prompt

from headscope.analyses._interventions.ablation import encode_task, evaluate
from headscope.analyses._interventions.metrics import UNITS, score
from headscope.probes import load_model
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import EncodedQuestion

LOGITS = torch.tensor(
    [
        [[0.0, 1.0, 2.0, 3.0], [5.0, 0.0, 0.0, 0.0]],
        [[1.0, 1.0, 1.0, 1.0], [0.0, math.log(2), 0.0, math.log(4)]],
    ]
)
ASKED = [
    [EncodedQuestion(0, (3, 1), (0,), ()), EncodedQuestion(1, (1,), (0, 2, 3), ())],
    [EncodedQuestion(1, (3,), (1, 2), ())],
]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("logit_difference", [((3 + 1) / 2 - 0 + 0 - 5 / 3) / 2, math.log(4) - math.log(2) / 2]),
        ("accuracy", [0.5, 1.0]),
    ],
)
def test_scores_by_hand(metric, expected):
    torch.testing.assert_close(score(LOGITS, ASKED, metric), torch.tensor(expected))


def test_probability_differences_by_hand():
    row = np.exp([0.0, 1.0, 2.0, 3.0])
    first = (row[3] + row[1] - row[0]) / row.sum()
    tall = math.exp(5) + 3
    second = (1 - (math.exp(5) + 2)) / tall
    expected = torch.tensor([(first + second) / 2, (4 - 2 - 1) / 8], dtype=torch.float32)
    torch.testing.assert_close(score(LOGITS, ASKED, "probability_difference"), expected)


def test_scores_have_gradients():
    values = LOGITS.clone().requires_grad_(True)
    score(values, ASKED, "logit_difference").sum().backward()
    assert values.grad is not None
    assert values.grad[1, 1].tolist() == [0.0, -0.5, -0.5, 1.0]


def test_what_cannot_be_scored_is_refused():
    check_refusal("metric", score, LOGITS, ASKED, "loss")
    check_refusal("task", score, LOGITS, [ASKED[0], []], "accuracy")
    alone = [[EncodedQuestion(0, (1,), (), ())]]
    assert score(LOGITS[:1], alone, "accuracy").tolist() == [0.0]
    for metric in set(UNITS) - {"accuracy", "log_probability"}:
        check_refusal("wrong", score, LOGITS[:1], alone, metric)


@pytest.fixture(scope="module")
def task() -> Task:
    """Prompts of two lengths with one and two questions."""
    short, long = tuple(WORDS[5:8]), tuple(WORDS[8:13])
    one = Asked(at=2, answers=(WORDS[13],), wrong=(WORDS[12], WORDS[11]))
    two = Asked(at=4, answers=(WORDS[5], WORDS[6]), wrong=(WORDS[7],))
    prompts = (
        word_prompt(short, short, [one]),
        word_prompt(long, long, [two, one]),
        word_prompt(short[::-1], short, [one]),
    )
    return Task("by hand", prompts, "logit_difference", 0, "Nothing.")


def test_a_task_is_scored_prompt_by_prompt(random_llama, task):
    edits = (Ablate(heads=((0, 1),)),)
    for given in ((), edits):
        expected = []
        with torch.no_grad():
            for prompt in task.prompts:
                ids = random_llama.encode(prompt.clean)
                rows = logits(random_llama, torch.tensor([ids]), given)[0]
                values = []
                for question in prompt.questions:
                    row = rows[len(random_llama.encode(prompt.clean[: question.at])) - 1]
                    right = [float(row[random_llama.encode(word)[1]]) for word in question.answers]
                    wrong = [float(row[random_llama.encode(word)[1]]) for word in question.wrong]
                    values.append(np.mean(right) - np.mean(wrong))
                expected.append(np.mean(values))
        result = evaluate(random_llama, task, given)
        assert result.shape == (3,)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    assert not np.allclose(evaluate(random_llama, task), evaluate(random_llama, task, edits))


def test_the_metric_can_be_chosen(random_llama, task):
    assert set(evaluate(random_llama, task, metric="accuracy").tolist()) <= {0.0, 0.5, 1.0}
    check_refusal("metric", evaluate, random_llama, task, metric="loss")


def test_a_task_needs_a_tokenizer(random_llama, task):
    check_refusal("tokenizer", evaluate, load_model(random_llama.module), task)


def test_an_encoded_task_is_its_prompts_and_parts_of_them(random_llama, task):
    encoded = encode_task(random_llama, task)
    assert encode_task(random_llama, encoded) is encoded
    assert encoded.question_positions == ((3,), (3, 5), (3,))
    whole = evaluate(random_llama, task)
    np.testing.assert_allclose(evaluate(random_llama, encoded.part([1, 2])), whole[1:], 1e-5)
    assert evaluate(random_llama, encoded.corrupted())[2] == pytest.approx(whole[0], abs=1e-5)
