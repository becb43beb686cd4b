from __future__ import annotations

import json

import numpy as np
import pytest
from constructed import needle, repeated

from headscope import analyses, probes
from headscope.analyses._runtime import runner
from headscope.kernels.errors import HeadscopeError
from headscope.probes.prompts import tasks

QUICK = {
    "parallel_context": {"blocks": 3},
    "position_bias": {"draws": 1},
    "head_types": {"draws": 1},
    "retrieval": {"draws": 1, "recall_prompts": 2},
    "rollout": {"substitutes": 1},
    "sae_circuits": {"epochs": 2, "trials": 2},
    "classes": {"first": 1, "recent": 2, "gate_steps": 2},
    "latent_retrieval": {"pairs": 3, "best": 1, "draws": 1},
    "lookback": {"new_tokens": 1, "draws": 1},
    "distractors": {"facts": "2,4", "best": 1},
    "block_influence": {"causal_prompts": 2},
    "contributions": {"causal_prompts": 2},
    "pruning": {"points": 4, "orders": 2},
    "tuning": {"steps": 2, "count": 1, "other": "thread"},
    "query_focus": {"query_words": 1, "best": 1, "draws": 1, "null_query": "nothing"},
}
# What the constructed model, with learned positions and few words, cannot be asked.
UNSUITED = {"frequencies": "positions do not turn", "needle_sweep": "no length or depth to sweep"}
SCALES = {"sequential", "diverging"}


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


@pytest.mark.parametrize("name", analyses.names())
def test_every_analysis_runs_on_what_it_declares_and_says_what_it_shows(circuit, name):
    def make(task, n, **options):
        return lambda: tasks.make(task, tokenizer=circuit.tokenizer, n=n, **options)

    own = {
        "retrieval": lambda: needle(("north", "south")),
        "position_bias": make("recall", 2, pairs=4),
        "latent_retrieval": make("associative", 2, pairs=3),
        "lookback": make("recall", 8, pairs=4),
        "query_focus": make("recall", 6, pairs=4),
        "distractors": make("recall", 2, pairs=4),
    }
    task = own.get(name, lambda: repeated(n=6, length=6))()
    if name in UNSUITED:
        with pytest.raises(HeadscopeError, match=UNSUITED[name]):
            runner.execute(name, circuit, task, task=task)
        return
    result = runner.execute(name, circuit, task, task=task, options=QUICK.get(name))
    attrs = result.attrs
    assert attrs["analysis"] == name
    assert attrs["title"] == analyses.summary(name)
    assert set(json.loads(attrs["options"])) == set(analyses.options(name))
    for key in ("model", "revision", "prompts_sha256", "headscope", "convention", "note"):
        assert attrs[key], key
    json.dumps(attrs)
    for variable in result.data_vars:
        meaning = result[variable].attrs
        assert meaning["long_name"]
        assert meaning["units"]
        assert meaning["scale"] in SCALES
        json.dumps(meaning)
        values = result[variable].values
        assert not (values < meaning.get("low", -np.inf) - 1e-6).any()
        assert not (values > meaning.get("high", np.inf) + 1e-6).any()
        if "interval_of" in meaning:
            assert meaning["interval_of"] in result
            assert meaning["level"] == 0.95


def test_analyses_of_one_prompt_set_share_one_capture(circuit, captures):
    task = repeated(n=2, length=6)
    names = ("head_types", "importance", "rollout")
    results = dict(
        runner.execute_many(names, circuit, task=task, options={"head_types": {"draws": 1}})
    )
    assert list(results) == list(names)
    # Importance captures the corrupted prompts, too; the task itself is captured once.
    of_task = [each for each in captures if each["prompts"] is task]
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
    digests = {each.attrs["prompts_sha256"] for each in results.values()}
    assert len(digests) == 1


def test_a_capture_that_holds_the_need_is_used(circuit, captures):
    cap = probes.capture(circuit, [[0, 5, 6, 7, 8, 9, 10, 11, 12]], stats=("received",))
    result = runner.execute("sinks", circuit, capture=cap)
    assert len(captures) == 1
    assert result.attrs["prompts_sha256"] == cap.attrs["prompts_sha256"]
    poor = cap.drop_vars("received")
    with pytest.raises(HeadscopeError, match="sinks needs received; give the prompts"):
        runner.execute("sinks", circuit, capture=poor)
    again = runner.execute("sinks", circuit, ["apple lemon " * 5], capture=poor)
    assert len(captures) == 2
    assert again["sink"].shape == (2, 4)


def test_the_seed_draws_other_prompts_and_is_recorded(circuit):
    results = [
        runner.execute(
            "head_types",
            circuit,
            task="recall",
            n=2,
            seed=seed,
            options={"draws": 1},
        )
        for seed in (0, 0, 1)
    ]
    digests = [each.attrs["prompts_sha256"] for each in results]
    assert digests[0] == digests[1] != digests[2]
    assert [json.loads(each.attrs["options"])["seed"] for each in results] == [0, 0, 1]
    assert results[0].attrs["n_prompts"] == 2


def test_progress_names_the_step(circuit):
    steps = []
    runner.execute(
        "head_types",
        circuit,
        task=repeated(n=2, length=5),
        options={"draws": 1},
        progress=lambda *step: steps.append(step),
    )
    assert ("head_types: capture", 2, 2) in steps
    assert steps[-1] == ("head_types", 4, 4)


def test_bad_requests_are_refused_before_anything_runs(circuit, captures):
    with pytest.raises(HeadscopeError, match="prompts: sinks runs on your own prompts"):
        runner.execute("sinks", circuit)
    with pytest.raises(HeadscopeError, match="no analysis is called 'sunk'"):
        runner.execute_many(("sinks", "sunk"), circuit, ["apple"])
    with pytest.raises(HeadscopeError, match="epsilom"):
        runner.execute_many(("sinks",), circuit, ["apple"], options={"sinks": {"epsilom": 1}})
    with pytest.raises(HeadscopeError, match="'rollout' is not among"):
        runner.execute_many(("sinks",), circuit, ["apple"], options={"rollout": {}})
    assert captures == []
    with pytest.raises(HeadscopeError, match="task: importance needs answers"):
        runner.execute("importance", circuit, task=["apple lemon"])
