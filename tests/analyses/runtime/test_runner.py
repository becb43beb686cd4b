import json
from dataclasses import replace

import pytest
from constructed import repeated
from refusals import check_refusal

from headscope import analyses, probes
from headscope.analyses._runtime import runner
from headscope.kernels.errors import HeadscopeError, NotApplicable
from headscope.probes.prompts import tasks


@pytest.fixture
def captures(monkeypatch):
    """Record what is captured."""
    seen = []
    inner = probes.capture

    def record(model, prompts, **arguments):
        seen.append({**arguments, "prompts": prompts})
        return inner(model, prompts, **arguments)

    monkeypatch.setattr(probes, "capture", record)
    return seen


def test_analyses_of_one_prompt_set_share_one_capture(circuit, captures):
    task = repeated(n=2, length=6)
    names = ("head_types", "importance", "rollout")
    options = {"head_types": {"draws": 1}}
    results = dict(runner.execute_many(names, circuit, task=task, options=options))
    assert list(results) == list(names)
    # Importance captures the corrupted prompts, too; the task itself is captured once.
    of_task = [capture for capture in captures if capture["prompts"] is task]
    assert len(of_task) == 1
    assert of_task[0]["stats"] == ("offset_mass", "target_mass", "first_mass", "pattern")
    assert of_task[0]["keep"] == ("z",)
    assert of_task[0]["targets"] == ("duplicate", "induction")


def test_prompts_that_are_the_task_too_are_captured_once(circuit, captures):
    task = repeated(n=2, length=6)
    options = {"head_types": {"draws": 1}, "sinks": {"least_queries": 1}}
    names = ("sinks", "head_types")
    results = dict(runner.execute_many(names, circuit, task, task=task, options=options))
    assert len([each for each in captures if each["prompts"] is task]) == 1
    assert len({each.attrs["prompts_sha256"] for each in results.values()}) == 1


def test_a_capture_that_holds_the_need_is_used(circuit, captures):
    cap = probes.capture(circuit, [[0, 5, 6, 7, 8, 9, 10, 11, 12]], stats=("received",))
    result = runner.execute("sinks", circuit, capture=cap)
    assert len(captures) == 1
    assert result.attrs["prompts_sha256"] == cap.attrs["prompts_sha256"]
    poor = cap.drop_vars("received")
    check_refusal("capture", runner.execute, "sinks", circuit, capture=poor)
    again = runner.execute("sinks", circuit, ["apple lemon " * 5], capture=poor)
    assert len(captures) == 2
    assert again["sink"].shape == (2, 4)


def test_the_seed_draws_other_prompts_and_is_recorded(circuit):
    given = {"task": "recall", "n": 2, "options": {"draws": 1}}
    results = [runner.execute("head_types", circuit, seed=seed, **given) for seed in (0, 0, 1)]
    digests = [result.attrs["prompts_sha256"] for result in results]
    assert digests[0] == digests[1] != digests[2]
    assert [json.loads(result.attrs["options"])["seed"] for result in results] == [0, 0, 1]
    assert results[0].attrs["n_prompts"] == 2


def test_progress_names_the_step(circuit):
    steps, task = [], repeated(n=2, length=5)
    given = {"options": {"draws": 1}, "progress": lambda *step: steps.append(step)}
    runner.execute("head_types", circuit, task=task, **given)
    assert {name for name, _, _ in steps} == {"head_types"}
    assert len(steps) > 2
    assert steps == sorted(steps)
    assert steps[-1][1] == steps[-1][2]


def test_bad_requests_are_refused_before_anything_runs(circuit, captures):
    check_refusal("prompts", runner.execute, "sinks", circuit)
    check_refusal("analysis", runner.execute_many, ("sinks", "sunk"), circuit, ["apple"])
    with pytest.raises(HeadscopeError, match="epsilom"):
        runner.execute_many(("sinks",), circuit, ["apple"], options={"sinks": {"epsilom": 1}})
    with pytest.raises(HeadscopeError, match="'rollout' is not among"):
        runner.execute_many(("sinks",), circuit, ["apple"], options={"rollout": {}})
    assert captures == []
    check_refusal("task", runner.execute, "importance", circuit, task=["apple lemon"])


def test_a_result_states_what_the_intact_model_makes_of_its_task(circuit):
    task = repeated(n=4, length=6)
    options = {"draws": 1}
    solved = runner.execute("head_types", circuit, task=task, options=options).attrs
    assert solved["intact"] == f"Intact accuracy on {task.name}: 1.00 (1.00 to 1.00)"
    # The wrong words asked for as the right ones: the model prefers the others.
    turned = [
        replace(
            prompt,
            questions=tuple(
                replace(question, answers=question.wrong, wrong=question.answers)
                for question in prompt.questions
            ),
        )
        for prompt in task.prompts
    ]
    task = replace(task, prompts=tuple(turned), metric="logit_difference")
    missed = runner.execute("head_types", circuit, task=task, options=options).attrs
    assert missed["intact"].startswith(f"Intact logit difference on {task.name}: -")
    assert missed["note"].startswith("The intact model is too low to conclude.")
    assert "too low to conclude" not in solved["note"]
    assert missed["verdict"] == "too_few"
    assert "intact" not in runner.execute("entropy", circuit, task).attrs


def test_what_is_drawn_beside_a_given_task_is_worded_like_it(circuit, monkeypatch):
    drawn = []

    def keep(model, task):
        drawn.append(tasks.make("recall", n=1).register)
        raise NotApplicable("task: seen")

    monkeypatch.setattr(analyses.load("distractors"), "run", keep)
    for register in tasks.REGISTERS:
        task = tasks.make("recall", None, 1, register=register)
        dict(runner.execute_many(("distractors",), circuit, task=task))
    dict(runner.execute_many(("distractors",), circuit, n=1))
    assert drawn == ["plain", "natural", "plain"]
