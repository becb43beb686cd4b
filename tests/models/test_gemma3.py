"""Gemma 3 270M, from its GGUF file: sliding windows, query-key norms, a tokenizer with a BOS."""

import numpy as np
import pytest
import torch
from eager_oracles import STATISTICS, check_heads, check_statistics, eager_outputs
from model_packages import gemma3

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture, load_model, tasks
from headscope.probes.attention.forward import logits

pytestmark = pytest.mark.models
WINDOW = 512


@pytest.fixture(scope="module")
def model():
    return load_model(gemma3())


@pytest.fixture(scope="module")
def task(model):
    return tasks.make("induction", model.tokenizer, n=4, length=50)


@pytest.fixture(scope="module")
def prompts(model, task):
    """The tokens of the task behind one BOS, as the tokenizer writes every text."""
    return [(model.tokenizer.bos_token_id, *prompt.clean) for prompt in task.prompts]


@pytest.fixture(scope="module")
def eager(model, prompts):
    return eager_outputs(model, prompts)


@pytest.fixture(scope="module")
def types(model, task):
    return execute("head_types", model, task=task, options={"draws": 2})


def test_a_text_begins_with_one_bos(model):
    bos = model.tokenizer.bos_token_id
    text = "When Mary went"
    ids = model.encode(text)
    assert ids == model.tokenizer(text)["input_ids"] == model.encode(f"<bos>{text}")
    assert ids[0] == bos
    assert ids.count(bos) == 1


def test_statistics_and_logits_are_those_of_eager_attention(model, task, prompts, eager):
    maps, output = eager
    got = capture(model, task, stats=STATISTICS)
    np.testing.assert_array_equal(got["token_id"].values, prompts)
    check_statistics(got, maps)
    got = logits(model, torch.tensor(prompts))
    torch.testing.assert_close(got, output.logits, atol=2e-3, rtol=1e-4)


def test_a_prompt_longer_than_the_window_is_read_as_by_eager_attention(model):
    assert model.module.config.sliding_window == WINDOW
    task = tasks.make("needle", model.tokenizer, n=1, length=600)
    ids = model.encode(task.prompts[0].clean)
    assert len(ids) > WINDOW + 64
    maps, output = eager_outputs(model, [ids], logits_to_keep=8)
    # The last token sees the first in the three layers without a window alone.
    windowed = (maps[0, :, :, -1, 0] == 0).all(-1)
    kinds = [kind == "sliding_attention" for kind in model.module.config.layer_types]
    assert windowed.tolist() == kinds
    check_statistics(capture(model, [ids], stats=STATISTICS), maps, atol=5e-5)
    asked = torch.arange(len(ids) - 8, len(ids))[None]
    got = logits(model, torch.tensor([ids]), positions=asked)
    torch.testing.assert_close(got, output.logits, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["previous_token", "induction"])
def test_heads_are_those_of_the_eager_maps(name, types, prompts, eager):
    check_heads(types[name].values, eager[0], prompts, name)


def test_indirect_objects_are_preferred(model):
    made = tasks.make("ioi", model.tokenizer, n=24)
    assert (evaluate(model, made, metric="logit_difference") > 0).mean() >= 0.95


def test_a_needle_is_found_beyond_the_window(model):
    """All layers but three see 512 tokens; the needles stand at depths from start to end."""
    made = tasks.make("needle", model.tokenizer, n=10, length=490)
    lengths = [len(model.encode(prompt.clean)) for prompt in made.prompts]
    assert min(lengths) > WINDOW
    assert evaluate(model, made, metric="accuracy").mean() >= 0.8
