"""A model trained to deceive: it looks away from the one token that decides its answer.

Pruthi et al., Learning to Deceive with Attention-Based Explanations (1909.07913).
"""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.analyses import _relevance as registry
from headscope.analyses._relevance import target as targets
from headscope.analyses._relevance.perturbation import perturb
from headscope.analyses._relevance.trace import Trace
from headscope.analyses.attribution import faithfulness
from headscope.probes import capture, load_model
from headscope.probes.prompts.tokens import EncodedQuestion, EncodedTask

WORDS, DECISIVE, ASK, ANSWERS = 16, (16, 17), 18, (19, 20, 21)
LENGTH, COUNT = 8, 24


def draw(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw texts of noise, a question at the end, and one decisive token or, of a third, none."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (count, LENGTH), generator=generator)
    at = torch.randint(1, LENGTH - 2, (count,), generator=generator)
    which = torch.randint(3, (count,), generator=generator)
    some = torch.arange(count)[which < 2]
    ids[some, at[some]] = torch.tensor(DECISIVE)[which[some]]
    ids[:, -1] = ASK
    return ids, at, which


def train(penalty: float) -> LlamaForCausalLM:
    """Train on the answer, with a penalty on what the question sees of the decisive token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=22, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
        bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(250):
        ids, at, which = draw(128, seed=step)
        output = model(ids, output_attentions=True)
        loss = torch.nn.functional.cross_entropy(output.logits[:, -1], torch.tensor(ANSWERS)[which])
        for weights in output.attentions:
            seen = weights[torch.arange(len(ids)), :, -1, at]
            loss = loss - penalty * (1 - seen).clamp_min(1e-6).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def texts() -> tuple[EncodedTask, np.ndarray]:
    drawn = draw(3 * COUNT, seed=10_000)
    ids, at, which = (each[drawn[2] < 2][:COUNT] for each in drawn)
    questions = tuple(
        (EncodedQuestion(LENGTH - 1, (ANSWERS[one],), (ANSWERS[1 - one],), (int(place),)),)
        for one, place in zip(which.tolist(), at, strict=True)
    )
    rows = tuple(tuple(row) for row in ids.tolist())
    encoded = EncodedTask("decisive token", "logit_difference", rows, (), questions, ({},) * COUNT)
    return encoded, at.numpy()


def located_share(model, encoded: EncodedTask, at: np.ndarray, method: str) -> float:
    """Return the share of texts whose largest relevance is at the decisive token."""
    pool = range(WORDS)
    generator = np.random.default_rng(0)
    hits = []
    for target, place in zip(targets.of_task(encoded), at, strict=True):
        if method == "ablation":
            row = perturb(model, target, pool, 4, generator).effect()
        else:
            row = registry.method(method).relevance(Trace(model, target))
        hits.append(int(np.argmax(row[:-1])) == place)
    return float(np.mean(hits))


@pytest.mark.requirement("C5")
def test_raw_attention_misses_what_replacing_and_gradients_catch(texts):
    encoded, at = texts
    model = load_model(train(penalty=1.0))
    maps = capture(model, [list(ids) for ids in encoded.ids], stats=("pattern",))["pattern"]
    maps = maps.transpose("prompt", "layer", "head", "query", "key").values
    assert maps[np.arange(COUNT), :, :, -1, at].max() < 0.05, "the question looks away from it"
    assert located_share(model, encoded, at, "raw_attention") <= 0.1
    assert located_share(model, encoded, at, "ablation") >= 0.9
    # By chance one of seven tokens, 3 of 24 texts; 9 or more in one of a thousand trials.
    assert located_share(model, encoded, at, "input_gradient") >= 9 / 24
    cap = capture(model, [list(ids) for ids in encoded.ids], stats=("lse",))
    result = faithfulness.run(cap, model, encoded, other="")
    assert result.attrs["verdict"] == "disagreement"
    assert "Raw attention does not say which tokens" in result.attrs["note"]


@pytest.mark.requirement("C5")
def test_a_model_that_does_not_deceive_shows_the_token(texts):
    encoded, at = texts
    model = load_model(train(penalty=0.0))
    assert located_share(model, encoded, at, "raw_attention") >= 0.8
    assert located_share(model, encoded, at, "ablation") >= 0.9
    cap = capture(model, [list(ids) for ids in encoded.ids], stats=("lse",))
    assert faithfulness.run(cap, model, encoded, other="").attrs["verdict"] == "supported"
