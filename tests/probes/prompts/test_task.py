"""A task refuses what cannot be scored."""

import pytest
from refusals import check_message

from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts import writing
from headscope.probes.prompts.task import Prompt, Question, Task

ASK = Question(at=3, answers=(" b",), wrong=(" c",), evidence=((0, 1),))


def test_question_without_answer_is_refused():
    check_message(r"^answers: ", Question, at=0, answers=())
    check_message(r"^answers: an empty text", Question, at=0, answers=("a",), wrong=("",))


def test_continuation_both_right_and_wrong_is_refused():
    with pytest.raises(HeadscopeError, match=r"^wrong: 'b' is also an answer"):
        Question(at=0, answers=("a", "b"), wrong=("b",))


@pytest.mark.parametrize(
    ("clean", "corrupted", "questions", "roles", "message"),
    [
        ("", "", (ASK,), {}, "clean: the prompt is empty"),
        (" \n", " ", (ASK,), {}, "clean: the prompt is empty"),
        ((1, 2), (1,), (ASK,), {}, "corrupted: 1 tokens where the clean prompt has 2"),
        ("a b", (1, 2), (ASK,), {}, "corrupted: give two texts"),
        ("a b", "a c", (), {}, "questions: "),
        ("a", "c", (ASK,), {}, "at: position 3 is outside the prompt of 1 characters"),
        ("a b", "a c", (ASK,), {"S": ((3, 4),)}, "roles: S at 3 to 4 points outside"),
        ("a b", "a c", (ASK,), {"S": ((1, 1),)}, "roles: S at 1 to 1 points outside"),
    ],
)
def test_prompt_that_does_not_hold_together_is_refused(clean, corrupted, questions, roles, message):
    check_message(f"^{message}", Prompt, clean, corrupted, questions, roles)


def test_evidence_outside_the_prompt_is_refused():
    ask = Question(at=1, answers=("b",), evidence=((-1, 1),))
    check_message("evidence at -1 to 1", Prompt, "a", "c", (ask,))


def test_task_refuses_an_unknown_metric_and_no_prompts():
    prompt = Prompt("a b", "a c", (ASK,))
    check_message(r"^metric: 'loss' is unknown", Task, "mine", (prompt,), "loss", 0, "")
    check_message(r"^prompts: ", Task, "mine", (), "accuracy", 0, "")
    assert len(Task("mine", (prompt, prompt), "accuracy", 0, "")) == 2


@pytest.mark.parametrize(
    ("clean", "corrupted", "change"),
    [
        ("the dog ran", "the lion ran", ((4, 7), (4, 8))),
        ("the dog", "the dogs", ((4, 7), (4, 8))),
        ("dog. cat.", "cow. hen.", ((0, 9), (0, 9))),
        ("法国的", "德国的", ((0, 3), (0, 3))),
    ],
)
def test_what_differs_is_one_change_of_whole_words(clean, corrupted, change):
    prompt = Prompt(clean, corrupted, (Question(len(clean), (" x",)),))
    assert prompt.changes == (change,)
    assert prompt.corrupted_position(len(clean)) == len(corrupted)


def test_a_writer_knows_where_every_piece_stands_in_both_prompts():
    writer = writing.Writer()
    first = writer.write("{A} met {B}.", A=("Al", "Roberta"), B="Eve")
    again = writer.write("\nThen {A} left", A=("Al", "Roberta"))
    ask = Question(first["B"][0], ("x",))
    prompt = writer.prompt([ask], {"A": [first["A"], again["A"]]})
    assert prompt.clean == "Al met Eve.\nThen Al left"
    assert prompt.corrupted == "Roberta met Eve.\nThen Roberta left"
    assert [prompt.part(span) for span in prompt.roles["A"]] == ["Al", "Al"]
    assert prompt.corrupted[prompt.corrupted_position(ask.at) :].startswith("Eve")
    assert prompt.part(writer.word_after(first["A"])) == "met"
