from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from constructed import WORDS, repeated

from headscope.analyses._interventions import ablation, head_sweep
from headscope.analyses._interventions.prefix_reuse import Passes
from headscope.probes import load_model
from headscope.probes.attention.forward import evaluate
from headscope.probes.interventions import Ablate


@pytest.fixture(scope="module")
def task():
    one, other = repeated(n=2, length=5), repeated(n=1, length=7, seed=1)
    return replace(one, prompts=(other.prompts[0], *one.prompts), metric="logit_difference")


def deep(kind, tokenizer):
    torch.manual_seed(1)
    names = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=len(WORDS), n_positions=80, n_embd=32, n_layer=3, n_head=4,
                bos_token_id=0, eos_token_id=0,
            )
        ),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(
                vocab_size=len(WORDS), hidden_size=32, intermediate_size=32, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=2, head_dim=8, bos_token_id=0,
                eos_token_id=0, max_position_embeddings=80,
            )
        ),
    }  # fmt: skip
    return load_model(names[kind]().eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_passes_from_a_layer_on_give_the_numbers_of_one_edit_at_a_time(kind, random_llama, task):
    model = deep(kind, random_llama.tokenizer)
    left = ablation.leave_one_out(model, task, "logit_difference")
    for layer, head in ((0, 1), (1, 3), (2, 0), (2, 2)):
        expected = evaluate(model, task, (Ablate(heads=((layer, head),)),)).values
        np.testing.assert_allclose(left[:, layer, head], expected, atol=1e-5)
    ids, asked = ablation.asked_of(model, task)
    assert Passes(model, torch.tensor([ids[0]]), [asked[0]]).resumes


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
    ids, asked = ablation.asked_of(model, task)
    assert not Passes(model, torch.tensor([ids[0]]), [asked[0]]).resumes
    left = ablation.leave_one_out(model, task, "logit_difference")
    expected = evaluate(model, task, (Ablate(heads=((1, 2),)),)).values
    np.testing.assert_allclose(left[:, 1, 2], expected, atol=1e-5)


def test_the_number_of_ablations_in_a_pass_changes_nothing(random_llama, task, monkeypatch):
    many = ablation.leave_one_out(random_llama, task, "logit_difference")
    rows = []
    inner = Passes.logits

    def count(self, layer, edits, times):
        rows.append(times * self.ids.numel())
        return inner(self, layer, edits, times)

    monkeypatch.setattr(Passes, "logits", count)
    monkeypatch.setattr(head_sweep, "TOKENS", 40)
    few = ablation.leave_one_out(random_llama, task, "logit_difference")
    np.testing.assert_allclose(few, many, atol=1e-6)
    # A pass never holds more tokens than asked, so long prompts do not blow it up.
    assert max(rows) <= 40
    assert len(rows) > 8


def test_the_model_is_left_as_it_was(random_llama, task):
    blocks = random_llama.module.model.layers
    ablation.leave_one_out(random_llama, task, "logit_difference")
    assert all("forward" not in part.__dict__ for part in blocks)
    head = random_llama.module.get_output_embeddings()
    assert not head._forward_pre_hooks


def test_a_kv_group_is_all_its_query_heads_at_once(random_llama, task):
    sets = head_sweep.every_group(random_llama)
    assert sets.shape == (4, 2, 4)
    left = ablation.leave_out(random_llama, task, ("logit_difference",), sets)[0]
    edit = Ablate(heads=((1, 2), (1, 3)))
    np.testing.assert_allclose(left[:, 3], evaluate(random_llama, task, (edit,)).values, atol=1e-5)
