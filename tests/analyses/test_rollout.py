from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from constructed import repeated

from headscope.analyses import _attribution, _flow, rollout
from headscope.kernels.refusal import Refused
from headscope.probes import capture
from headscope.probes.forward import logits


@pytest.fixture(scope="module")
def task():
    return repeated(n=3, length=4)


@pytest.fixture(scope="module")
def captured(circuit, task):
    return capture(circuit, task, stats=("pattern",))


@pytest.mark.seed("C1")
def test_maps_are_those_of_the_pattern(circuit, captured):
    result = rollout.run(captured, circuit, prompt=1, substitutes=1)
    maps = captured["pattern"].values[1].astype(float)
    mixed = [(each.mean(0) + np.eye(9)) / 2 for each in maps]
    np.testing.assert_allclose(result["rollout"].values, mixed[1] @ mixed[0], atol=1e-6)
    np.testing.assert_allclose(result["flow"].values, _flow.flow(np.stack(mixed)), atol=1e-6)
    np.testing.assert_allclose(result["raw_attention"].values, maps[1].mean(0), atol=1e-6)
    tokens = captured["token"].values[1]
    assert result["token"].values.tolist() == tokens.tolist()


def test_replacing_tokens_finds_what_the_prediction_rests_on(circuit, captured):
    # After `a b c d a b c d` the induction head reads b's copy, found through a; and the last d.
    result = rollout.run(captured, circuit, substitutes=3)
    effect = result["ablation_effect"].values
    # <bos> a b c d a b c d: the last d asks what followed the first d, which is a at place 5.
    assert set(np.argsort(-effect)[:3]) == {4, 5, 8}
    assert effect[[1, 2, 3, 6, 7]].max() < 0.1 * effect[[4, 5, 8]].min()
    assert str(result.attrs["predicted"]) == str(result["token"].values[5])


@torch.no_grad()
def test_the_gradient_is_the_finite_difference(random_llama):
    ids, answer, step = [0, 7, 9], 8, 1e-3
    gradient = _attribution.input_gradient(random_llama, ids, answer)
    module = copy.deepcopy(random_llama.module).double()
    base = module.get_input_embeddings()(torch.tensor([ids]))
    for position in range(len(ids)):
        # One row of the batch per channel and sign.
        moves = torch.eye(base.shape[-1], dtype=torch.double) * step
        changed = base.repeat(2 * len(moves), 1, 1)
        changed[:, position] += torch.cat((moves, -moves))
        chances = module(inputs_embeds=changed, use_cache=False).logits[:, -1].log_softmax(-1)
        up, down = chances[:, answer].chunk(2)
        slopes = (up - down) / (2 * step)
        assert gradient[position] == pytest.approx(float(slopes.norm()), rel=1e-3)


def test_the_effect_is_the_change_of_log_probability(random_llama):
    ids, answer = [0, 7, 9], 8
    effect = _attribution.replacement_effect(
        random_llama, ids, answer, np.array([[1, 2], [3, 4], [5, 6]])
    )

    def chance(tokens):
        with torch.no_grad():
            last = logits(random_llama, torch.tensor([tokens]))[0, -1]
        return float(last.log_softmax(-1)[answer])

    expected = np.mean([abs(chance([0, other, 9]) - chance(ids)) for other in (3, 4)])
    assert effect[1] == pytest.approx(expected, abs=1e-5)


def test_agreement_is_spearmans():
    assert rollout.correlate(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == 0.8
    assert np.isnan(rollout.correlate(np.ones(4), np.arange(4.0)))


def test_bad_input_is_refused(circuit, captured):
    with pytest.raises(Refused, match="flow_tokens: a prompt has 9 tokens"):
        rollout.run(captured, circuit, flow_tokens=8)
    with pytest.raises(Refused, match="prompt: 3 is outside"):
        rollout.run(captured, circuit, prompt=3)
    same = capture(circuit, [[0, 5, 5, 5]], stats=("pattern",))
    with pytest.raises(Refused, match="all tokens are the same"):
        rollout.run(same, circuit)
