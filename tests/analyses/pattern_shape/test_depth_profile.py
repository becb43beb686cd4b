import architectures
import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, SINK, UNIFORM, WORDS
from refusals import check_refusal

from headscope.analyses import depth_profile
from headscope.analyses._runtime.runner import execute
from headscope.kernels.errors import HeadscopeError
from headscope.probes import capture
from headscope.probes.prompts import tasks

PARTS, LENGTH = 4, 41


@pytest.mark.requirement("A14")
def test_planted_heads_have_flat_curves_of_known_height(circuit):
    ids = [[0, *[WORDS.index("apple")] * (LENGTH - 1)]] * 2
    result = depth_profile.run(capture(circuit, ids, stats=()), circuit, parts=PARTS, question=0.5)
    mass = result["depth_mass"].values
    start = LENGTH - round(LENGTH / 2)
    size = (start - 1) / PARTS
    even = (size / np.arange(start + 1, LENGTH + 1)).mean()
    np.testing.assert_allclose(mass[UNIFORM], even, rtol=1e-4)
    np.testing.assert_allclose(mass[SINK], 0, atol=1e-3)
    # Of the question's queries only the first attends back into the text before it.
    before = np.array([0, 0, 0, 1 / (LENGTH - start)])
    np.testing.assert_allclose(mass[PREVIOUS], before, atol=1e-3)
    for name in ("tilt", "u_shape", "depth_wave"):
        np.testing.assert_allclose(result[name].values[UNIFORM], 0, atol=1e-5)
    assert result["tilt"].values[PREVIOUS] > 0


@pytest.mark.requirement("A14")
def test_an_induction_head_is_tilted_to_where_the_copy_stands(circuit):
    names = ["Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma"]
    early, late = ([0, *(WORDS.index(word) for word in (*text, "Lucy", "Mark"))] for text in (
        ("Lucy", "apple", *names), (*names, "Lucy", "apple")))  # fmt: skip
    tilts = [
        float(depth_profile.run(capture(circuit, [ids], stats=()), circuit, question=0.1, parts=5)
              ["depth_mass"].values[INDUCTION].argmax())
        for ids in ([*early[:-1]], [*late[:-1]])
    ]  # fmt: skip
    assert tilts == [0, 4]


def test_the_part_with_the_needle_is_the_dearest_to_hide(bundled):
    for at, expected in ((0.1, 0), (0.6, 2)):
        task = tasks.make("needle", tokenizer=bundled.tokenizer, n=3, seed=5, length=90, depth=at)
        result = execute("depth_profile", bundled, task, options={"question": 0.05, "parts": 4})
        assert int(result["depth_loss"].values.argmax()) == expected


def test_hiding_agrees_with_a_dense_mask(random_llama):
    ids = np.random.default_rng(0).integers(1, len(WORDS), size=24).tolist()
    result = depth_profile._cost(random_llama, ids, [list(range(1, 5)), list(range(5, 9))], 18)
    costs = []
    for keys in ((), range(1, 5), range(5, 9)):
        mask = torch.full((24, 24), -torch.inf).triu(1)
        mask[18:, list(keys)] = -torch.inf
        logits, _ = architectures.eager(random_llama.module, torch.tensor([ids]), mask[None, None])
        nats = torch.nn.functional.cross_entropy(logits[0, 17:-1], torch.tensor(ids[18:]))
        costs.append(float(nats))
    np.testing.assert_allclose(result, np.array(costs[1:]) - costs[0], atol=1e-6)
    assert np.abs(result).max() > 1e-6


def test_bad_input_is_refused(circuit):
    short = capture(circuit, [[0, 5, 6, 7]], stats=())
    check_refusal("parts", depth_profile.run, short, circuit)
    with pytest.raises(HeadscopeError, match="causal order"):
        depth_profile.run(short.assign_coords(causal=("layer", [False, False])), circuit)
