"""Massive activations: planted ones are found, joined to the sink and set; oracles are weights."""

from operator import itemgetter

import numpy as np
import pytest
import torch
from constructed import random_llama, rotary_sink
from refusals import check_refusal

from headscope.analyses import massive
from headscope.analyses.sink_behavior import _outliers
from headscope.probes import capture, load_model

HUGE, CHANNEL = 500.0, 7
# <bos> first, then other words; in the second prompt <bos> stands in the middle, too.
PROMPTS = [[0, *range(3, 30)], [0, *range(20, 30), 0, *range(5, 14)], [0, *range(9, 33)]]


@torch.no_grad()
def planted(*values: float):
    """A model whose first tokens have these numbers in one channel."""
    model = random_llama()
    model.module.model.embed_tokens.weight[: len(values), CHANNEL] = torch.tensor(values)
    return load_model(model.module, tokenizer=model.tokenizer)


def eager_loss(module, ids: list[int], channel: dict[int, float] | None = None) -> float:
    """Loss of a text, the channel of some tokens set to other numbers where they enter."""
    given = torch.tensor([ids])
    with torch.no_grad():
        embedded = module.model.embed_tokens(given).clone()
        for token, value in (channel or {}).items():
            embedded[given == token, CHANNEL] = value
        logits = module(inputs_embeds=embedded).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, given[0, 1:]))


@pytest.fixture(scope="module")
def found():
    model = planted(HUGE)
    cap = capture(model, PROMPTS, stats=("received",))
    return model, cap, massive.run(cap, model)


@pytest.mark.requirement("A4")
def test_the_planted_activations_are_located(found):
    _, _, result = found
    place = itemgetter("prompt", "boundary", "position", "channel")
    places = set(map(place, result.attrs["massive"]))
    assert places == {(0, 0, 0, 7), (1, 0, 0, 7), (1, 0, 11, 7), (2, 0, 0, 7)}
    assert {one["token"] for one in result.attrs["massive"]} == {"<bos>"}
    np.testing.assert_allclose(result["magnitude"].sel(size="largest").values[0], HUGE)
    assert result["token_magnitude"].values.argmax() == 0
    assert result["tokens"].sel(group="massive").item() == pytest.approx(4 / 3)


@pytest.mark.requirement("A4")
def test_zero_and_mean_of_unequal_values_are_the_losses_of_models_that_have_them():
    values = (HUGE, 4 * HUGE, -4 * HUGE)
    model = planted(*values)
    # <bos> twice, the two others once: their mean is that of four activations.
    prompts = [PROMPTS[0], [1, *PROMPTS[2][1:]], [2, *range(20, 30), 0, *range(5, 14)]]
    result = massive.run(capture(model, prompts, stats=("received",)), model)
    assert sorted(one["value"] for one in result.attrs["massive"]) == [-2000, 500, 500, 2000]
    loss = dict(zip(result["condition"].values.tolist(), result["loss"].values, strict=True))
    for name, value in (("massive set to zero", 0.0), ("massive set to mean", HUGE / 2)):
        tokens = dict.fromkeys(range(3), value)
        expected = np.mean([eager_loss(model.module, ids, tokens) for ids in prompts])
        assert loss[name] == pytest.approx(expected, abs=1e-5)
        assert abs(loss[name] - loss["intact"]) > 1e-4
    intact = np.mean([eager_loss(model.module, ids) for ids in prompts])
    assert loss["intact"] == pytest.approx(intact, abs=1e-5)
    assert abs(loss["massive set to zero"] - loss["massive set to mean"]) > 1e-4


@pytest.mark.requirement("A4")
def test_a_constant_can_be_set_to_its_mean_without_harm(found):
    _, _, result = found
    loss = dict(zip(result["condition"].values.tolist(), result["loss"].values, strict=True))
    # The planted number is the same in every prompt, so its mean is itself.
    assert loss["massive set to mean"] == pytest.approx(loss["intact"], abs=1e-6)
    assert abs(loss["massive set to zero"] - loss["intact"]) > 1e-4


@pytest.mark.requirement("A4")
def test_both_thresholds_count(found):
    model, cap, _ = found
    assert massive.run(cap, model, least=HUGE + 1).attrs["massive"] == []
    stream = capture(model, PROMPTS[:1], stats=(), keep=("resid",))["resid"]
    median = float(np.median(np.abs(stream[0, 0])))
    strict = massive.run(cap, model, ratio=1.01 * HUGE / median)
    assert not [one for one in strict.attrs["massive"] if one["prompt"] == 0]
    check_refusal("least, ratio", _outliers.locate, model, [list(range(30)) * 8] * 2, 0.0, 0.0)


@torch.no_grad()
def quiet_sink():
    """The sink of `rotary_sink` with a massive activation and no value at <bos>."""
    module = rotary_sink().module
    module.model.embed_tokens.weight[0, 0] = 2000.0
    module.model.layers[0].self_attn.v_proj.weight[:, 0] = 0.0
    module.model.layers[0].self_attn.o_proj.weight *= 20
    return load_model(module, tokenizer=rotary_sink().tokenizer)


@pytest.mark.requirement("A1", "A4")
def test_massive_tokens_join_sink_tokens_whose_values_are_small():
    model = quiet_sink()
    prompts = [[0, *range(1, 16), *range(1, 16)], [1, 2, 3, 0, *range(4, 16), *range(4, 16)]]
    cap = capture(model, prompts * 8, stats=("received",))
    result = massive.run(cap, model)
    assert all(one["sink"] for one in result.attrs["massive"])
    assert {one["position"] for one in result.attrs["massive"]} == {0, 3}
    assert min(one["received"] for one in result.attrs["massive"]) > 0.99
    tokens = dict(zip(result["group"].values.tolist(), result["tokens"].values, strict=True))
    assert tokens["massive"] == tokens["massive and sinks"] == 1
    # L0H0 parks on <bos>, whose value is zero; the first token of the second prompt is another.
    assert float(result["sink_value_norm"][0, 0]) == 0.0
    assert float(result["first_value_norm"][0, 0]) > 0.1
    # Without the activation the key is gone, and the head reads words instead.
    assert result.attrs["verdict"] == "supported"


@pytest.mark.requirement("A4")
def test_the_bundled_model_has_none_as_in_its_own_hidden_states(bundled):
    ids = [[0, *np.random.default_rng(0).integers(3, 400, 40).tolist()] for _ in range(2)]
    result = massive.run(capture(bundled, ids, stats=("received",)), bundled)
    with torch.no_grad():
        states = bundled.module(input_ids=torch.tensor(ids), output_hidden_states=True)
    # The last entry is normalised; the others are what goes into each block.
    actual = result["magnitude"].sel(size="largest").values
    for boundary, state in enumerate(states.hidden_states[:-1]):
        sizes = state.abs().flatten(1)
        largest = sizes.amax(1)
        assert actual[boundary] == pytest.approx(float(largest.mean()), rel=1e-4)
        assert bool((largest < 1000 * sizes.median(1).values).all())
    assert result.attrs["massive"] == []
    assert np.isnan(result["loss"].values[1:]).all()
    assert "verdict" not in result.attrs
