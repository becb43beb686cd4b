import pytest
from refusals import check_refusal

from headscope.probes.prompts import tasks
from headscope.probes.prompts.few_shot import few_shot
from headscope.probes.prompts.tokens import encode


@pytest.mark.parametrize("name", ["ioi", "recall", "needle"])
def test_shots_are_solved_prompts_and_the_question_stays_itself(name, bundled):
    options = {"recall": {"pairs": 2}, "needle": {"length": 30}}.get(name, {})
    task = tasks.make(name, bundled.tokenizer, 5, **options)
    shown = few_shot(task, 2)
    plain, longer = (encode(each, bundled.tokenizer) for each in (task, shown))
    solved = [
        f"{prompt.clean}{max(prompt.questions, key=lambda each: each.at).answers[0]}."
        for prompt in task.prompts
    ]
    for row, (before, after) in enumerate(zip(task.prompts, shown.prompts, strict=True)):
        parts = [after.part(span) for span in after.roles["shot"]]
        assert after.clean == " ".join([*parts, before.clean])
        assert set(parts) < {*solved} - {solved[row]}
        for role, spans in before.roles.items():
            assert [after.part(span) for span in after.roles[role]] == [
                before.part(span) for span in spans
            ]
        shift = len(longer.ids[row]) - len(plain.ids[row])
        for question, other in zip(plain.questions[row], longer.questions[row], strict=True):
            assert other.at == question.at + shift
            assert other.answer_ids == question.answer_ids
            assert other.evidence == tuple(at + shift for at in question.evidence)
        assert len(longer.corrupted_ids[row]) == len(longer.ids[row])


def test_shots_share_nothing_that_was_to_be_apart(bundled):
    task = tasks.make("recall", bundled.tokenizer, 12, pairs=2, queries=1)
    for prompt in few_shot(task, 3, distinct_role="key").prompts:
        # Two facts of its own and two of each shot, and two mentions of each asked key.
        keys = [prompt.part(span) for span in prompt.roles["key"]]
        assert all(prompt.clean.split().count(str(key)) <= 2 for key in keys)
        assert sum(prompt.clean.split().count(str(key)) for key in keys) == 3


def test_too_many_shots_are_refused(bundled):
    task = tasks.make("recall", bundled.tokenizer, 3, pairs=2, queries=1)
    check_refusal("shots", few_shot, task, 3)
    check_refusal("shots", few_shot, task, -1)
    assert few_shot(task, 0).prompts == task.prompts
