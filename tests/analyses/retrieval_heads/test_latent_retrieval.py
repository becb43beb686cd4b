import numpy as np
import pytest
import torch
from constructed import BEFORE, HEADS, INDUCTION, KEYS, OUT, PLACE, SIZE, TOKEN, WORDS, tokenizer
from transformers import GPT2LMHeadModel

from headscope.analyses._interventions.ablation import evaluate
from headscope.analyses._runtime.runner import execute
from headscope.probes import load_model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tasks.associative import PARTNERS

pytestmark = pytest.mark.requirement("B3")

ASSOCIATIVE, SECOND = (1, 1), (2, 0)
WIDTH = HEADS * SIZE
HOP = 230


@pytest.fixture(scope="module")
@torch.no_grad()
def associating(circuit):
    """The circuit with a second copier, which looks for the partner of its own token."""
    module = GPT2LMHeadModel(circuit.module.config).eval()
    module.load_state_dict(circuit.module.state_dict())
    attention = module.transformer.h[1].attn
    words, into = torch.arange(len(WORDS)), attention.c_attn.weight
    for pair in PARTNERS:
        if set(pair) <= set(KEYS):
            first, second = (WORDS.index(word) for word in pair)
            into[TOKEN + first, SIZE + second] = into[TOKEN + second, SIZE + first] = 3.0
    into[BEFORE + words, WIDTH + SIZE + words] = 1.0
    attention.c_attn.bias[2 * SIZE - 1] = 16.0
    into[PLACE, WIDTH + 2 * SIZE - 1] = 1.0
    into[TOKEN + words, 2 * WIDTH + SIZE + words] = 1.0
    attention.c_proj.weight[SIZE + words, OUT + words] = 1 / 13
    # Each rests on <bos> when the other has found something, and must not say it.
    into[TOKEN, 2 * WIDTH : 3 * WIDTH] = 0.0
    return load_model(module, tokenizer=tokenizer())


@pytest.fixture(scope="module")
@torch.no_grad()
def threading(circuit):
    """The circuit with a third layer, which looks for what its second layer has found."""
    config = type(circuit.module.config)(**{**circuit.module.config.to_dict(), "n_layer": 3})
    module = GPT2LMHeadModel(config).eval()
    for name, weight in module.named_parameters():
        if "ln_" not in name:
            weight.zero_()
    module.load_state_dict(circuit.module.state_dict(), strict=False)
    words = torch.arange(len(WORDS))
    second, third = (block.attn for block in module.transformer.h[1:])
    second.c_proj.weight[words, OUT + words] = 0.0
    second.c_proj.weight[words, HOP + words] = 1 / 13
    into = third.c_attn.weight
    into[HOP + words, words] = 3.0
    into[BEFORE + words, WIDTH + words] = 1.0
    # "note KEY KEY2 ." has a full stop after the key that is looked for.
    into[TOKEN + WORDS.index("."), WIDTH + words] = -1.0
    into[TOKEN + words, 2 * WIDTH + words] = 1.0
    third.c_proj.weight[words, OUT + words] = 1 / 13
    return load_model(module, tokenizer=tokenizer())


def measure(model, n=5, **options):
    task = tasks.make("associative", model.tokenizer, n, pairs=3)
    settings = {"pairs": 3, "best": 1, "draws": 3, **options}
    return execute("latent_retrieval", model, task=task, options=settings)


def test_two_planted_heads_carry_literal_and_associative_facts_apart(associating):
    result = measure(associating)
    for kind, head, other in (
        ("literal", INDUCTION, ASSOCIATIVE), ("associative", ASSOCIATIVE, INDUCTION),
    ):  # fmt: skip
        weight = result["evidence"].sel(kind=kind).values
        assert weight[head] > 0.999
        assert weight[other] < 0.001
        assert result["accuracy"].sel(kind=kind).values[:2].tolist() == [1.0, 0.0]
        label = f"L{head[0]}H{head[1]}"
        assert result.attrs["heads_by_type"][kind] == [label]
    assert "thread: not solved" in result.attrs["note"]


def test_a_literal_copier_alone_cannot_associate(circuit):
    result = measure(circuit)
    assert result["accuracy"].sel(kind="literal").values[:2].tolist() == [1.0, 0.0]
    assert float(result["accuracy"].sel(kind="associative")[0]) == 0.0
    assert bool(result["evidence"].sel(kind="associative").isnull().all())
    # Asked for the end of a thread it says what the first fact says.
    assert float(result["mistakes"].sel(kind="thread", mistake="one step too short")) == 1.0


def test_a_planted_second_hop_follows_the_thread_and_nothing_shorter(threading):
    result = measure(threading)
    assert result["accuracy"].sel(kind="thread").values[:2].tolist() == [1.0, 0.0]
    weight = result["evidence"].sel(kind="thread").values
    assert weight[SECOND] > 0.999
    assert weight[INDUCTION] < 0.001
    assert float(result["accuracy"].sel(kind="literal")[0]) == 0.0
    # A thread of one fact asks for one hop, of three for three: neither is what it does.
    for hops in (1, 3):
        task = tasks.make("thread", threading.tokenizer, 4, hops=hops)
        assert float(evaluate(threading, task).mean()) == 0.0


def test_the_bundled_model_copies_and_states_that_it_cannot_associate(bundled):
    result = execute("latent_retrieval", bundled, n=16, options={"draws": 2})
    intact, without, others = result["accuracy"].sel(kind="literal").values
    assert (intact, without) == (1.0, 0.0)
    assert others > 0.8
    for kind in ("associative", "thread"):
        assert float(result["accuracy"].sel(kind=kind)[0]) < 0.5
        assert np.isnan(result["accuracy"].sel(kind=kind)[1:]).all()
        assert bool(result["evidence"].sel(kind=kind).isnull().all())
        assert f"{kind}: not solved, accuracy" in result.attrs["note"]
    assert float(result["mistakes"].sel(kind="thread", mistake="one step too short")) > 0.7
    assert result.attrs["verdict"] == "supported"
