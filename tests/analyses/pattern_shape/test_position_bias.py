import numpy as np
import pytest
import torch
from constructed import (
    DUPLICATE,
    INDUCTION,
    PREVIOUS,
    SINK,
    UNIFORM,
    WORDS,
    repeated,
    silent_gpt2,
    tokenizer,
)
from refusals import check_refusal

from headscope.analyses import position_bias
from headscope.analyses.pattern_shape import _slots
from headscope.probes import load_model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.writing import split

SLOTS = 5


@pytest.fixture(scope="module")
def facts(circuit):
    return tasks.make("recall", tokenizer=circuit.tokenizer, n=3, seed=1, pairs=SLOTS)


@pytest.fixture(scope="module")
def result(circuit, facts):
    return position_bias.run(circuit, facts, draws=4)


@pytest.mark.requirement("A14")
def test_planted_heads_are_split_into_relevance_and_position(result):
    relevance, bias = result["relevance"].values, result["bias"].values
    # <bos>, the facts of four words each, and the two words of the question.
    size = 1 + 4 * SLOTS + 2
    # Copies of the asked key, and the value after it, are attended to wherever they stand. Without
    # one the induction head rests on <bos>, and the other attends to every other word alike.
    for head, even in ((INDUCTION, 0), (DUPLICATE, 2 / (size - 1))):
        np.testing.assert_allclose(result["asked_mass"].values[head], 1, atol=0.01)
        np.testing.assert_allclose(bias[head], even, atol=0.01)
        np.testing.assert_allclose(relevance[head], 1 - even, atol=0.01)
        np.testing.assert_allclose(result["bias_share"].values[head], 0, atol=0.01)
    np.testing.assert_allclose(bias[UNIFORM], 2 / size, rtol=1e-4)
    for head in (UNIFORM, PREVIOUS, SINK):
        np.testing.assert_allclose(relevance[head], 0, atol=2e-3)
        np.testing.assert_allclose(result["u_shape"].values[head], 0, atol=2e-3)
    assert set(result.attrs["heads_by_type"]["relevance"]) == {"L0H3", "L1H0"}
    np.testing.assert_allclose(result["found"].values, [1, 1, 1 / SLOTS])
    np.testing.assert_allclose(result["slot_accuracy"], 1)


@torch.no_grad()
def by_position(size: int, curves: list[np.ndarray]):
    """A GPT-2 of one layer whose heads have logits that are curves over position alone."""
    width = 64 * len(curves)
    module = silent_gpt2(n_positions=size, n_embd=width, n_layer=1, n_head=len(curves))
    module.transformer.wte.weight[:, : len(WORDS)] = torch.eye(len(WORDS))
    attention = module.transformer.h[0].attn
    spread = ((1 - 1 / width) / width + module.config.layer_norm_epsilon) ** 0.5
    for head, curve in enumerate(curves):
        # So small that the norm divides by the spread of the token alone; and its mean is 0.
        places = torch.tensor(curve) * 1e-4
        module.transformer.wpe.weight[:, 100 + head] = places
        module.transformer.wpe.weight[:, 150 + head] = -places
        attention.c_attn.bias[64 * head] = 1e4 * 8 * spread
        attention.c_attn.weight[100 + head, width + 64 * head] = 1.0
    # Something must be written for a model to be one.
    words = torch.arange(len(WORDS))
    attention.c_attn.weight[words, 2 * width + words] = 1.0
    attention.c_proj.weight[words, 200 + words] = 1.0
    return load_model(module, tokenizer=tokenizer())


@pytest.mark.requirement("A14")
def test_a_planted_u_shape_is_found_and_no_other_curve_is_taken_for_one(facts):
    size = 1 + 4 * SLOTS + 2
    x = np.linspace(-1, 1, size)
    # A U, its opposite, a slope, a rise that is bent up and has no second end, and no curve.
    curves = [2 * x**2, -2 * x**2, x, np.maximum(3 * x, 0), 0 * x]
    result = position_bias.run(by_position(size, curves), facts, draws=1)
    assert result.attrs["heads_by_type"]["U-shaped"] == ["L0H0"]
    assert "U-shaped heads: L0H0." in result.attrs["note"]
    place = np.linspace(-1, 1, SLOTS)
    for head, curve in enumerate(curves):
        weights = np.exp(curve) / np.exp(curve).sum()
        # A fact is four words, and its key and value are the second and third.
        slots = np.array([weights[2 + 4 * slot : 4 + 4 * slot].sum() for slot in range(SLOTS)])
        bend, tilt, _ = np.polyfit(place, slots, 2)
        np.testing.assert_allclose(result["bias"].values[0, head], slots, atol=2e-4)
        np.testing.assert_allclose(result["u_shape"].values[0, head], bend, atol=2e-4)
        np.testing.assert_allclose(result["tilt"].values[0, head], tilt, atol=2e-4)
    # The fourth is bent upwards, too, and more.
    bends = result["u_shape"].values[0]
    assert bends[3] > bends[0] > 0.01
    assert bends[1] < -0.01


def test_the_relevant_heads_carry_the_answers(result, bundled):
    intact, without, _ = result["relevance_accuracy"].values
    assert (intact, without) == (1.0, 0.0)
    task = tasks.make("recall", tokenizer=bundled.tokenizer, n=16, seed=4, pairs=4)
    actual = position_bias.run(bundled, task, draws=3)
    # The copying heads that the card of the bundled model names.
    named = set(actual.attrs["heads_by_type"]["relevance"][:5])
    assert named == {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}
    assert actual["relevance_accuracy"].values[1] < 0.5
    assert actual.attrs["verdict"] == "supported"


@pytest.mark.requirement("A14")
def test_calibration_finds_what_a_bias_hides():
    count = 6
    bias = np.broadcast_to(np.linspace(-1, 1, count) ** 2, (4, 1, 1, count))
    asked = np.repeat(bias[:, None], count, axis=1).copy()
    for slot in range(count):
        asked[:, slot, ..., slot] += 0.3
    raw, calibrated, chance = position_bias._hits(asked, bias).mean(0)
    assert raw < 0.6
    assert calibrated == 1
    assert chance == 1 / count


@pytest.mark.requirement("A14")
def test_tilt_u_shape_and_wave_have_their_closed_forms():
    x = np.linspace(-1, 1, 9)
    ripple = np.cos(np.arange(9) * np.pi)
    tilt, bend = _slots.curve(0.3 + 0.2 * x + 0.1 * x**2)
    np.testing.assert_allclose((tilt, bend), (0.2, 0.1))
    np.testing.assert_allclose(_slots.wave(0.3 + 0.2 * x + 0.1 * x**2), 0, atol=1e-12)
    fit = np.polyfit(x, ripple, 2)
    left = np.sqrt(((ripple - np.polyval(fit, x)) ** 2).mean())
    np.testing.assert_allclose(_slots.wave(0.5 + 0.1 * ripple + x**2), 0.1 * left)


@pytest.mark.requirement("A14")
def test_variance_is_split_exactly():
    slot, document = np.array([0.1, 0.2, 0.6]), 0.5
    by_slot, by_document, both = _slots.explained(slot + document, slot)
    assert both == pytest.approx(0)
    within = ((slot - slot.mean()) ** 2).mean()
    assert by_slot == pytest.approx(within / (within + document**2 / 4))
    assert by_document == pytest.approx(1 - by_slot)


def test_the_other_facts_keep_their_order_and_the_dummy_has_a_new_name(circuit, facts):
    moved = _slots.move(facts, circuit)[0]
    key = split(moved.asked[0].clean)[-1]
    stated = [[prompt.part(span) for span in prompt.roles["key"]] for prompt in moved.asked]
    rest = [[one for one in keys if one != key] for keys in stated]
    assert all(one == rest[0] for one in rest)
    for slot, prompt in enumerate(moved.asked):
        assert stated[slot][slot] == key
        assert f" {prompt.part(prompt.roles['value'][slot])}" == prompt.questions[0].answers[0]
    for prompt in moved.dummy:
        assert key not in split(prompt.clean)[:-1]


def test_facts_may_stand_far_apart(bundled):
    task = tasks.make("recall", tokenizer=bundled.tokenizer, n=2, seed=4, pairs=4)
    result = position_bias.run(bundled, task, length=90, draws=1)
    assert "90 words" in result.attrs["convention"]


def test_bad_input_is_refused(circuit):
    check_refusal("task", position_bias.run, circuit, repeated(n=2, length=6))
