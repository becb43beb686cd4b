from dataclasses import replace

import numpy as np
import pytest
import torch
from constructed import KEYS, OUT, VALUES, WORDS, circuit, repeated
from refusals import check_refusal

from headscope.analyses import tuning
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.results import top
from headscope.analyses.head_importance import _tuned
from headscope.probes import capture
from headscope.probes.interventions import Gate, Offset
from headscope.probes.prompts import tasks
from headscope.probes.prompts.task import Prompt, Question, Task

SPEAKS_KEYS, SPEAKS_VALUES = (1, 1), (1, 2)


@pytest.fixture(scope="module")
def speakers():
    """The constructed circuit, in which L1H1 alone can say keys, L1H2 values, and all say Mary.

    L1H1 whispers lemon and L1H2 east; Mary, from the last norm, is louder than both.
    """
    model = circuit()
    body = model.module.transformer
    block, size = body.h[1].attn, model.head_size
    with torch.no_grad():
        copied = block.c_proj.weight[:size].clone()
        block.c_proj.weight.zero_()
        speakers = ((SPEAKS_KEYS, KEYS, "lemon"), (SPEAKS_VALUES, VALUES, "east"))
        for (_, head), some, whispered in speakers:
            rows = torch.tensor([WORDS.index(word) for word in some])
            block.c_proj.weight[head * size + rows] = copied[rows]
            block.c_attn.bias[(8 + head) * size + WORDS.index(whispered)] = 1.0
        body.ln_f.bias[OUT + WORDS.index("Mary")] = 2.0
    return model


def constant(name: str, word: str, other: str) -> Task:
    """Ask for the same word everywhere, whatever the prompt."""
    prompts = [
        Prompt(
            prompt.clean,
            prompt.clean,
            (Question(len(prompt.clean), (f" {word}",), (f" {other}",)),),
        )
        for prompt in repeated(n=8, length=4).prompts
    ]
    return Task(name, tuple(prompts), "accuracy", 0, "One word for everything.")


@pytest.mark.requirement("D3")
def test_heads_selected_for_a_task_beat_those_of_another(speakers):
    output = {"keys": ("lemon", "east"), "values": ("east", "lemon")}
    output = {name: constant(name, *words) for name, words in output.items()}
    sizes = torch.ones(2, 4)
    best = {}
    for name, task in output.items():
        weight = _tuned.head_weights(speakers, task, steps=25, rate=0.1, penalty=1.0)
        best[name] = top(np.abs(weight - 1), 1)
    # What a head cannot say, no weight of it brings closer.
    assert best == {"keys": [SPEAKS_KEYS], "values": [SPEAKS_VALUES]}
    for name, task in output.items():
        held_out = replace(task, prompts=task.prompts[1::2])
        learned_from = replace(task, prompts=task.prompts[0::2])
        rates = {}
        for whose, heads in best.items():
            vector = _tuned.offsets(speakers, learned_from, heads, sizes, steps=40, rate=0.5)
            edit = (Offset(tuple(heads), vector),)
            rates[whose] = evaluate(speakers, held_out, edit, "accuracy").mean()
        other = next(each for each in output if each != name)
        assert (rates[name], rates[other]) == (1.0, 0.0)


@pytest.mark.requirement("D3")
def test_the_analysis_shows_that_the_tasks_own_heads_learn_it_and_no_others(speakers, monkeypatch):
    """L1H1 alone can say a key: selected, tuned and measured on other prompts."""
    task = constant("keys", "lemon", "east")
    monkeypatch.setattr(tasks, "make", lambda *_, **__: constant("values", "east", "lemon"))
    captured = capture(speakers, task, stats=(), keep=("z",))
    options = {"goal": "answers", "other": "recall", "count": 1, "steps": 40, "rate": 0.5}
    result = tuning.run(captured, speakers, task, **options)
    assert result.attrs["tuned_heads"]["own heads"] == ["L1H1"]
    assert result.attrs["tuned_heads"]["another task's heads"] == ["L1H2"]
    assert np.unravel_index(np.abs(result["weight"].values - 1).argmax(), (2, 4)) == SPEAKS_KEYS
    np.testing.assert_array_equal(np.argwhere(result["offset"].values), [SPEAKS_KEYS])
    assert result["tuned_accuracy"].values.tolist() == [[1.0, 0.0, 0.0]] * 2
    assert (result["advantage_lower"].values > 1).all()
    # Heads that cannot say the word leave its probability where it was.
    others = result["tuned"].values[:, 1:]
    np.testing.assert_allclose(others, float(result["before"]), atol=0.3)
    assert result.attrs["verdict"] == "supported"
    assert "learned from 4 prompts in 40 steps, measured on 4" in result.attrs["convention"]


@pytest.mark.requirement("D3")
def test_on_the_bundled_model_the_own_heads_learn_what_others_do_not(bundled):
    task = _tuned.aimed(tasks.make("ioi", bundled.tokenizer, n=24, seed=0), "wrong")
    other = _tuned.aimed(tasks.make("greater_than", bundled.tokenizer, n=12, seed=0), "wrong")
    learned_from = replace(task, prompts=task.prompts[0::2])
    unseen = replace(task, prompts=task.prompts[1::2])
    how = {"steps": 15, "rate": 0.15}
    output = []
    for selecting in (learned_from, other):
        weight = _tuned.head_weights(bundled, selecting, penalty=1.0, **how)
        heads = top(np.abs(weight - 1), 4)
        factor = _tuned.head_weights(bundled, learned_from, heads=heads, **how)
        assert {(int(first), int(second)) for first, second in np.argwhere(factor != 1)} == set(
            heads
        )
        edit = (Gate(torch.from_numpy(factor).float()),)
        output.append(evaluate(bundled, unseen, edit, "log_probability"))
    before = evaluate(bundled, unseen, (), "log_probability")
    assert output[0].mean() > output[1].mean() + 1 > before.mean() + 5


def test_the_gradient_step_is_that_of_the_log_probability(random_llama):
    # One plain step of Adam moves every offset by the rate, against the sign of the slope.
    task = repeated(n=2, length=4)
    vector = _tuned.offsets(random_llama, task, [(1, 2)], torch.ones(2, 4), steps=1, rate=1e-3)
    assert vector[1, 2].abs().allclose(torch.tensor(1e-3), rtol=1e-2)
    assert not vector[1, [0, 1, 3]].any()
    assert not vector[0].any()
    at, bump = 3, torch.zeros_like(vector)
    bump[1, 2, at] = 0.05
    ends = [
        evaluate(random_llama, task, (Offset(((1, 2),), sign * bump),), "log_probability").mean()
        for sign in (1, -1)
    ]
    assert np.sign(ends[0] - ends[1]) == np.sign(float(vector[1, 2, at]))
    assert all(parameter.grad is None for parameter in random_llama.module.parameters())


def test_the_analysis_states_who_learned_and_on_whose_prompts(circuit):
    task = repeated(n=8, length=5)
    captured = capture(circuit, task, stats=(), keep=("z",))
    options = {"goal": "answers", "other": "thread", "count": 1, "steps": 3}
    result = tuning.run(captured, circuit, task, **options)
    assert result["tuned"].shape == (2, 3)
    assert [len(each) for each in result.attrs["tuned_heads"].values()] == [1, 1, 1]
    assert "learned from 4 prompts in 3 steps, measured on 4 others" in result.attrs["convention"]
    [own] = result.attrs["tuned_heads"]["own heads"]
    offset = result["offset"].values
    assert [f"L{layer}H{head}" for layer, head in np.argwhere(offset > 0)] in ([own], [])


def test_bad_input_is_refused(circuit):
    task = repeated(n=4, length=5)
    captured = capture(circuit, task, stats=(), keep=("z",))
    check_refusal("count", tuning.run, captured, circuit, task, count=3)
    check_refusal("other", tuning.run, captured, circuit, task, other="repeated")
    check_refusal("task", tuning.run, captured, circuit, repeated(n=3, length=5))
    open_ended = tuple(
        replace(
            prompt, questions=tuple(replace(question, wrong=()) for question in prompt.questions)
        )
        for prompt in task.prompts
    )
    other = replace(task, prompts=open_ended)
    check_refusal("goal", tuning.run, captured, circuit, other, count=1)
