import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from constructed import WORDS, repeated
from largest_tensor import LargestTensor

from headscope.analyses._interventions import ablation, head_sets
from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.analyses._interventions.prefix_reuse import PrefixReuse
from headscope.probes import load_model
from headscope.probes.attention import work
from headscope.probes.interventions import Ablate


@pytest.fixture(scope="module")
def task():
    first, second = repeated(n=2, length=5), repeated(n=1, length=7, seed=1)
    return replace(first, prompts=(second.prompts[0], *first.prompts), metric="logit_difference")


def deep(kind, tokenizer):
    torch.manual_seed(1)
    shapes = {
        "gpt2": {"n_positions": 80, "n_embd": 32, "n_layer": 3, "n_head": 4},
        "gemma2": {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 80,
        },
    }  # fmt: skip
    shared = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **shapes[kind], **shared)
    module = transformers.AutoModelForCausalLM.from_config(config)
    return load_model(module.eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_passes_from_a_layer_on_give_the_numbers_of_one_edit_at_a_time(kind, random_llama, task):
    model = deep(kind, random_llama.tokenizer)
    left = ablation.ablate_each_head(model, task, "logit_difference")
    for layer, head in ((0, 1), (1, 3), (2, 0), (2, 2)):
        expected = evaluate(model, task, (Ablate(heads=((layer, head),)),))
        np.testing.assert_allclose(left[:, layer, head], expected, atol=1e-5)
    encoded = ablation.encode_task(model, task)
    ids, question_positions = encoded.ids, encoded.question_positions
    assert PrefixReuse(model, torch.tensor([ids[0]]), torch.tensor([question_positions[0]])).resumes


def test_blocks_that_hand_each_other_more_than_the_stream_are_run_whole(random_llama, task):
    module = copy.deepcopy(random_llama.module)
    kept = []

    def note(part, args, result):
        kept.append(result[0])

    def add(part, args, result):
        # What the first block's attention said reaches the end of the second, past the stream.
        return result + 3 * kept.pop() if kept else result

    first, second = module.model.layers
    first.self_attn.register_forward_hook(note)
    second.register_forward_hook(add)
    model = load_model(module, tokenizer=random_llama.tokenizer)
    encoded = ablation.encode_task(model, task)
    ids, question_positions = encoded.ids, encoded.question_positions
    assert not PrefixReuse(
        model, torch.tensor([ids[0]]), torch.tensor([question_positions[0]])
    ).resumes
    left = ablation.ablate_each_head(model, task, "logit_difference")
    expected = evaluate(model, task, (Ablate(heads=((1, 2),)),))
    np.testing.assert_allclose(left[:, 1, 2], expected, atol=1e-5)


def test_a_model_is_checked_from_every_layer_on_once(random_llama, task):
    model = deep("gpt2", random_llama.tokenizer)
    encoded = ablation.encode_task(model, task)
    ids, question_positions = (
        torch.tensor([encoded.ids[0]]),
        torch.tensor([encoded.question_positions[0]]),
    )
    counts = []
    for length in (ids.shape[1], ids.shape[1], ids.shape[1] + 1):
        layers = []
        with work.counting(lambda *_, layers=layers: layers.append(1)):
            PrefixReuse(model, ids.repeat(1, 2)[:, :length], question_positions)
        counts.append(len(layers))
    # A whole pass and one from layers 1 and 2 on; then the pass alone; of another length one from
    # layer 2 on, too.
    assert counts == [3 + 2 + 1, 3, 3 + 1]


def test_a_set_of_no_heads_is_the_clean_model_without_another_pass(random_llama, task):
    sets = [(), ((0, 1), (1, 2)), ()]
    ablation.ablated_metric(random_llama, task, "accuracy", sets)
    counted = []
    with work.counting(lambda count, _: counted.append(count)):
        result = ablation.ablated_metric(random_llama, task, "accuracy", sets)
    np.testing.assert_array_equal(result[:, 0], evaluate(random_llama, task, metric="accuracy"))
    np.testing.assert_array_equal(result[:, 0], result[:, 2])
    alone = []
    with work.counting(lambda count, _: alone.append(count)):
        ablation.ablated_metric(random_llama, task, "accuracy", sets[1:2])
    assert len(counted) <= len(alone)


def test_the_number_of_ablations_in_a_pass_changes_nothing(random_llama, task, monkeypatch):
    many = ablation.ablate_each_head(random_llama, task, "logit_difference")
    rows = []
    inner = PrefixReuse.logits

    def count(self, layer, edits, times):
        rows.append(times * self.ids.numel())
        return inner(self, layer, edits, times)

    monkeypatch.setattr(PrefixReuse, "logits", count)
    monkeypatch.setattr(ablation, "SWEEP_TOKENS", 40)
    few = ablation.ablate_each_head(random_llama, task, "logit_difference")
    np.testing.assert_allclose(few, many, atol=1e-6)
    # A pass never holds more tokens than asked, so long prompts do not blow it up.
    assert max(rows) <= 40
    assert len(rows) > 8


def test_the_model_is_left_as_it_was(random_llama, task):
    blocks = random_llama.module.model.layers
    ablation.ablate_each_head(random_llama, task, "logit_difference")
    assert all("forward" not in part.__dict__ for part in blocks)
    assert not random_llama.module.get_output_embeddings()._forward_pre_hooks


def test_a_kv_group_is_all_its_query_heads_at_once(random_llama, task):
    sets = head_sets.every_group(random_llama)
    assert sets.shape == (4, 2, 4)
    encoded = ablation.encode_task(random_llama, task)
    answers = AnswerMetric("logit_difference", encoded.questions)
    left = ablation.ablate_sets(random_llama, encoded, [answers], sets)[0]
    edit = Ablate(heads=((1, 2), (1, 3)))
    np.testing.assert_allclose(left[:, 3], evaluate(random_llama, task, (edit,)), atol=1e-5)


def test_a_large_vocabulary_is_computed_at_the_asked_positions_alone(random_llama, monkeypatch):
    vocabulary = 2**18
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=80, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    model = load_model(module, tokenizer=random_llama.tokenizer)
    question_positions = repeated(n=40, length=8)
    last = [
        replace(prompt, questions=prompt.questions[-1:]) for prompt in question_positions.prompts
    ]
    question_positions = replace(question_positions, prompts=last)
    for run in (ablation.evaluate, partial(ablation.ablate_each_head, metric="accuracy")):
        with LargestTensor() as largest:
            whole = run(model, question_positions)
        # One position a prompt; the logits of all positions are 17 times as many.
        assert 40 * vocabulary <= largest.elements <= 2 * 40 * vocabulary
        with monkeypatch.context() as patch:
            patch.setattr(ablation, "NUMBERS", 8 * vocabulary)
            with LargestTensor() as largest:
                parts = run(model, question_positions)
        assert largest.elements <= 8 * vocabulary
        np.testing.assert_allclose(parts, whole, atol=1e-6)
