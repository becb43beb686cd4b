"""Models of several families with uneven weights, and what their logit parts must sum to."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from constructed import WORDS

from headscope.analyses._interventions import ablation
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._measurements.readout import Readout
from headscope.analyses._measurements.unembedding import final_norm
from headscope.probes import load_model


def uneven(module, scale=0.5):
    """Give every vector of a model, gains and biases, numbers of its own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in module.parameters():
            if part.ndim == 1:
                part += scale * torch.randn(part.shape, generator=generator)
    return module.eval()


SHAPE = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0}
WIDE = {
    **SHAPE, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 80,
}  # fmt: skip
GROUPED = {**WIDE, "head_dim": 8, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": {**SHAPE, "n_positions": 80, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": WIDE,
    "qwen3": {**GROUPED, "hidden_size": 33},  # odd
    "gpt_neox": WIDE,  # attention and MLP in parallel
    "phi": WIDE,
    "granite": {**WIDE, "residual_multiplier": 0.5},  # scaled
    "gemma2": GROUPED,
}


def family(name, tokenizer):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **FAMILIES[name])
    module = transformers.AutoModelForCausalLM.from_config(config)
    return load_model(uneven(module), tokenizer=tokenizer)


def last_questions(model, task):
    encoded = ablation.encode_task(model, task)
    return dataclasses.replace(encoded, questions=[question[-1:] for question in encoded.questions])


def check_sums(model, encoded):
    """Heads, their tokens and the other components sum to what the model gives, as C6 says."""
    reads = Readout(model)
    parts = direct_logit_attribution.attribute(model, encoded, reads)
    whole = parts.logit
    if not parts.capped:
        whole = ablation.evaluate(model, encoded, metric="logit_difference")
    near = 1e-4 * np.abs(whole).max()
    np.testing.assert_allclose(parts.total(), whole, rtol=0, atol=near)
    table = reads.table.double()
    for row, (ids, (question,)) in enumerate(zip(encoded.ids, encoded.questions, strict=True)):
        stream = stream_before_the_norm(model, ids[: question.at + 1])
        along = table[list(question.answer_ids)].mean(0) - table[list(question.wrong_ids)].mean(0)
        size = float((stream * along).abs().sum())
        before = parts.before.total()[row]
        assert before == pytest.approx(float(stream @ along), abs=1e-5 * size)
        opened = direct_logit_attribution.of_prompt(reads, encoded, row)
        for result, heads in ((opened.after, parts.heads), (opened.before, parts.before.heads)):
            given = np.nan_to_num(heads[row])
            least = 1e-4 * np.abs(given).max()
            np.testing.assert_allclose(result.sum(-1), given, rtol=0, atol=least)


@torch.no_grad()
def stream_before_the_norm(model, ids):
    """Return the input of the last norm at the last token, from transformers' own pass."""
    entered = []
    hook = final_norm(model).register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    try:
        model.module(torch.tensor([list(ids)]))
    finally:
        hook.remove()
    return entered[-1][0, -1].double()
