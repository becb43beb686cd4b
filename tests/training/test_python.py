"""The recipe of the Python model: its rows and its forward pass."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from headscope_training.python.recipe import PHASES, RECIPE, PythonRecipe, hidden_states
from headscope_training.python.tokenizer import SIZE


@pytest.mark.parametrize("length", [96, 256])
def test_forward_is_that_of_transformers(length):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(RECIPE.config())
    ids = torch.randint(0, SIZE, (2, length))
    with torch.no_grad():
        ours, expected = hidden_states(model, ids), model.transformer(ids).last_hidden_state
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", range(len(PHASES)))
def test_rows_come_from_the_stream_or_repeat(number):
    recipe = PythonRecipe()
    recipe.stream = torch.arange(4000) % (SIZE - 1) + 1
    ids, weights, _ = recipe.draw(PHASES[number].until - 1)
    assert ids.shape == (weights.shape[0], weights.shape[1] + 1)
    assert bool((ids[:, 0] == 0).all())
    for row, weight in zip(ids[:, 1:], weights, strict=True):
        period = int((weight == 0).sum())
        steps = (row[1:] - row[:-1]) % (SIZE - 1)
        copied = period > 0 and torch.equal(row[period:], row[:-period])
        assert copied or bool((steps == 1).all())
    assert torch.equal(ids, recipe.draw(PHASES[number].until - 1).ids)
