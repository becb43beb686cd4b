"""Sink controls against the eager attention of the model itself, and against the paper's claim."""

import architectures
import numpy as np
import pytest
import torch

from headscope.analyses._runtime.runner import execute

TOKENS, PROMPTS, EPSILON = 64, 8, 0.3


@pytest.fixture(scope="module")
def result(bundled):
    options = {"tokens": TOKENS, "prompts": PROMPTS, "epsilon": EPSILON}
    prompts = [bundled.encode("")[:1] + list(range(3, 40))]
    return execute("sink_controls", bundled, prompts, options=options, seed=7)


@pytest.mark.requirement("A1")
def test_sinks_need_content_in_a_rotary_model(result):
    rate = dict(zip(result["condition"].values.tolist(), result["rate"].values, strict=True))
    assert rate["random tokens"] > 10
    assert rate["repeated token"] == 0
    assert float(result["sink_repeated"].max()) < EPSILON


@pytest.mark.requirement("A1")
def test_repeated_tokens_agree_with_eager_attention(result, bundled):
    # One repeated token: which token it is changes the map, so all of the drawn ones are run.
    plain = np.setdiff1d(np.arange(bundled.vocabulary), bundled.tokenizer.all_special_ids)
    drawn = np.random.default_rng(7).choice(plain, size=(PROMPTS, TOKENS))
    ids = torch.tensor(np.repeat(drawn[:, :1], TOKENS, axis=1))
    _, maps = architectures.eager(bundled.module, ids)
    first = torch.stack(maps).double()[..., 0].mean(-1)  # layer, prompt, head
    np.testing.assert_allclose(result["sink_repeated"], first.mean(1).numpy(), atol=5e-5)


def test_sink_heads_are_named(result):
    above = int((result["sink_random"] > EPSILON).sum())
    assert len(result.attrs["sink_heads"]) == above > 0
    assert result.attrs["sink_heads"][0] in result.attrs["note"]
