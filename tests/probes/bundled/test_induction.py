"""The shipped checkpoints: their files, their card, and the recipe that made them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from headscope.probes.bundled import folder
from headscope.probes.models.model_source import variants
from headscope_training.induction import evaluation
from headscope_training.induction.recipe import RECIPE, STEPS

FOLDER = folder("headscope/induction")
CARD = json.loads((FOLDER / "card.json").read_text())
TEXT = (FOLDER / "README.md").read_text()


def test_files_are_there_and_small():
    files = list(FOLDER.glob("model.*.safetensors"))
    assert len(files) >= 8
    assert {file.name for file in files} == {f"model.step{one}.safetensors" for one in STEPS}
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert variants(FOLDER) == [f"step{one}" for one in STEPS]
    assert [int(step) for step in CARD] == list(STEPS)


@pytest.mark.parametrize("step", ["0", "400", str(STEPS[-1])])
def test_the_card_is_what_is_measured(step):
    result = evaluation.measure(evaluation.load(FOLDER, f"step{step}"))
    assert result["text"] == pytest.approx(CARD[step]["text"], abs=2e-3)
    assert result["first_time"] == pytest.approx(CARD[step]["first_time"], abs=5e-3)
    for ours, expected in (
        (result["second_time"], CARD[step]["second_time"]),
        *((result["without"][name], each) for name, each in CARD[step]["without"].items()),
    ):
        assert ours == pytest.approx(expected, abs=5e-3)
    for name, value in CARD[step]["heads"].items():
        heads = torch.tensor(result["heads"][name])
        torch.testing.assert_close(heads, torch.tensor(value), atol=5e-3, rtol=0)


@pytest.mark.parametrize("step", CARD)
def test_the_card_lists_every_step(step):
    assert evaluation.table_row(step, CARD[step]) in TEXT


def test_the_first_checkpoint_is_the_initialisation_that_the_recipe_draws():
    torch.manual_seed(RECIPE.seed)
    drawn = RECIPE.build().state_dict()
    for name, tensor in load_file(FOLDER / "model.step0.safetensors").items():
        torch.testing.assert_close(tensor, drawn[name].half(), atol=0, rtol=0)
