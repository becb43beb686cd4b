"""A task refuses what cannot be scored."""

import pytest

from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts.task import Prompt, Question, Task

ASK = Question(at=1, answers=("b",), wrong=("c",), evidence=(0,))


def test_question_without_answer_is_refused() -> None:
    with pytest.raises(HeadscopeError, match=r"^answers: "):
        Question(at=0, answers=())


def test_word_both_right_and_wrong_is_refused() -> None:
    with pytest.raises(HeadscopeError, match=r"^wrong: 'b' is also an answer"):
        Question(at=0, answers=("a", "b"), wrong=("b",))


@pytest.mark.parametrize(
    ("words", "corrupted", "questions", "roles", "message"),
    [
        ((), (), (ASK,), {}, "words: the prompt is empty"),
        (("a", "b"), ("a",), (ASK,), {}, "corrupted: 1 words where the clean prompt has 2"),
        (("a", "b"), ("a", "c"), (), {}, "questions: "),
        (("a",), ("c",), (ASK,), {}, "at: position 1 is outside the prompt of 1 words"),
        (("a", "b"), ("a", "c"), (ASK,), {"S": (2,)}, "roles: S points outside"),
    ],
)
def test_prompt_that_does_not_hold_together_is_refused(
    words: tuple[str, ...],
    corrupted: tuple[str, ...],
    questions: tuple[Question, ...],
    roles: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    with pytest.raises(HeadscopeError, match=f"^{message}"):
        Prompt(words, corrupted, questions, roles)


def test_evidence_outside_the_prompt_is_refused() -> None:
    ask = Question(at=0, answers=("b",), evidence=(-1,))
    with pytest.raises(HeadscopeError, match="position -1"):
        Prompt(("a",), ("c",), (ask,))


def test_task_refuses_an_unknown_metric_and_no_prompts() -> None:
    prompt = Prompt(("a", "b"), ("a", "c"), (ASK,))
    with pytest.raises(HeadscopeError, match=r"^metric: 'loss' is unknown"):
        Task("mine", (prompt,), "loss", 0, "")
    with pytest.raises(HeadscopeError, match=r"^prompts: "):
        Task("mine", (), "accuracy", 0, "")
    assert len(Task("mine", (prompt, prompt), "accuracy", 0, "")) == 2
