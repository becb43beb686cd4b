import numpy as np
import pytest
import torch
from constructed import INDUCTION, KEYS, WORDS, repeated
from refusals import check_refusal
from word_prompts import Asked, word_prompt

from headscope.analyses import task_vectors
from headscope.analyses._interventions.ablation import encode_task
from headscope.analyses.head_importance.task_vectors import AddLast, last_outputs
from headscope.probes import tasks
from headscope.probes.attention.forward import logits
from headscope.probes.prompts.few_shot import few_shot
from headscope.probes.prompts.task import Task


def said(word: str, n: int = 32) -> Task:
    """``note KEY ask`` is always answered by one word, which only shots tell."""
    texts = [("note", KEYS[at % 10], "ask") for at in range(n)]
    prompts = tuple(word_prompt(text, text, [Asked(2, (word,), ("summer",))]) for text in texts)
    return Task(word, prompts, "accuracy", 0, "One word for everything.")


@pytest.fixture(scope="module")
def result(circuit):
    return task_vectors.run(circuit, said("north"), shots=2, steps=30, rate=0.2, penalty=8.0)


@pytest.mark.requirement("D3")
def test_outputs_of_few_shot_prompts_do_without_the_shots(result):
    """The copier reads the shots' answer; its output alone, added, says the word."""
    conditions = result["condition"].values.tolist()
    right = dict(zip(conditions, result["accuracy"].values, strict=True))
    assert (right["no shots"], right["shots"], right["task vector"]) == (0.0, 1.0, 1.0)
    assert float(result["gain_lower"]) > 1
    assert result.attrs["verdict"] == "supported"
    assert result.attrs["heads_by_type"]["task vector"][0] == "L1H0"


@pytest.mark.requirement("D3")
def test_the_weight_lies_on_the_head_that_carries_the_task(result):
    weight = result["weight"].values
    rest = np.delete(weight.ravel(), INDUCTION[0] * 4 + INDUCTION[1])
    assert weight[INDUCTION] > 1
    assert np.abs(rest).max() < 0.1 * weight[INDUCTION]


@pytest.mark.requirement("D3")
def test_the_vector_of_another_task_gives_another_word(circuit):
    """Each vector makes the model answer its own task's word, and never the other's."""
    weight = torch.zeros(2, 4)
    # Without an earlier copy the head says <bos> once; the vector outweighs it.
    weight[INDUCTION] = 2.0
    ask = torch.tensor([[0, WORDS.index("note"), WORDS.index("apple"), WORDS.index("ask")]])
    for word in ("north", "south"):
        outputs = last_outputs(circuit, encode_task(circuit, few_shot(said(word), 2)))
        with torch.no_grad():
            output = logits(circuit, ask, (AddLast(weight[:, :, None] * outputs),))
        assert WORDS[int(output[0, -1].argmax())] == word


def test_the_edit_is_an_offset_of_the_last_row_alone(random_llama):
    values = torch.randn(2, 4, random_llama.geometry.value_size)
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    with torch.no_grad():
        plain, edited = (logits(random_llama, ids, edits) for edits in ((), (AddLast(values),)))
    torch.testing.assert_close(plain[:, :-1], edited[:, :-1])
    # One layer by hand: the values through the output projection, at the last position.
    attention = random_llama.module.model.layers[0].self_attn
    only = values.clone()
    only[1] = 0.0
    added = attention.o_proj.weight @ only[0].flatten()
    hook = attention.register_forward_hook(
        lambda module, given, out: (
            torch.cat([out[0][:, :-1], out[0][:, -1:] + added], 1),
            *out[1:],
        )
    )
    with torch.no_grad():
        expected = random_llama.module(ids).logits
    hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(
            logits(random_llama, ids, (AddLast(only),)), expected, atol=1e-5, rtol=0
        )


def test_bad_input_is_refused(circuit):
    check_refusal("shots", task_vectors.run, circuit, said("north", 4), shots=2)
    check_refusal("task", task_vectors.run, circuit, repeated(n=6, length=5), shots=1)
    check_refusal("shots", few_shot, tasks.make("induction", n=6, vocab_size=30, length=5), 1)
