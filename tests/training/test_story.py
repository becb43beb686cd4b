"""The recipe of the story model: its rows, its curriculum, its forward pass."""

from itertools import pairwise

import pytest
import torch
from transformers import LlamaForCausalLM

from headscope.probes.prompts import tasks
from headscope_training.story.phases import PHASES
from headscope_training.story.recipe import RECIPE, hidden_states, rotation
from headscope_training.story.rows import FILL, RowSource, rows
from headscope_training.words import vocabulary


def test_forward_is_that_of_transformers():
    torch.manual_seed(0)
    model = LlamaForCausalLM(RECIPE.config())
    for length in (96, 256):
        ids = torch.randint(0, len(vocabulary()), (2, length))
        with torch.no_grad():
            ours = hidden_states(model, ids, *rotation(model, length, torch.float32))
            expected = model.model(ids).last_hidden_state
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "options"),
    [("induction", {"length": (4, 60)}), ("recall", {"pairs": (2, 60), "bare": True})],
)
def test_predictable_ids_of_a_row_followed_the_same_id_before(task, options):
    ids, weights, kinds = rows((RowSource(task, 1.0, options),), 8, 96, "rows")
    assert kinds == [task] * 8
    for row, weight in zip(ids, weights, strict=True):
        assert len(row) == len(weight) + 1
        counted = [position for position, value in enumerate(weight) if value]
        assert counted
        for position in counted:
            earlier = set(pairwise(row[: position + 1]))
            assert (row[position], row[position + 1]) in earlier


def test_needle_row_ends_in_its_answer_and_depths_vary():
    source = RowSource("needle", 1.0, {"span": 1, "depth": (0.0, 1.0), "length": FILL}, answer=4.0)
    ids, weights, _ = rows((source,), 12, 96, "needle")
    note = vocabulary()["note"]
    for row, weight in zip(ids, weights, strict=True):
        assert [position for position, value in enumerate(weight) if value == 4.0] == [95]
        assert row[96] == row[row.index(note) + 2]
    assert len({row.index(note) for row in ids}) > 6


@pytest.mark.parametrize("number", range(len(PHASES)))
def test_every_phase_draws_rows_that_teach(number):
    step = PHASES[number].until - 1
    ids, weights, kinds = RECIPE.draw(step)
    assert ids.shape == (weights.shape[0], weights.shape[1] + 1)
    assert set(kinds) <= {*tasks.names(), "text"}
    assert bool((weights.sum(1) > 0).all())
    assert torch.equal(ids, RECIPE.draw(step).ids)
    assert int(ids.max()) < len(vocabulary())
    assert bool((ids[:, 0] == 0).all())
