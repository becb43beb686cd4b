"""The frame of the recipes: schedule, resuming, and files that are those that ship."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from headscope.probes.bundled import folder
from headscope_training import MODELS, recipe_of
from headscope_training.checkpoint import CHECKPOINT, TOKENIZER, export
from headscope_training.induction.recipe import InductionRecipe
from headscope_training.loop import train
from headscope_training.python.recipe import PythonRecipe
from headscope_training.recipe import Batch, Recipe
from headscope_training.story.recipe import StoryRecipe


class SmallStory(StoryRecipe):
    """Three rows a step."""

    def draw(self, step: int) -> Batch:
        return super().draw(step).rows(slice(3))


class SmallPython(PythonRecipe):
    """In one process, on a stream of numbers, with the tokenizer that ships."""

    processes = 1

    def prepare(self, out: Path) -> None:
        for name in TOKENIZER:
            (out / name).write_bytes((folder(MODELS["python"]) / name).read_bytes())
        self.stream = torch.arange(4000) % 3071 + 1

    def draw(self, step: int) -> Batch:
        return super().draw(step).rows(slice(3))


class ShortInduction(InductionRecipe):
    """The first three steps."""

    snapshots = (0, 2, 3)


RECIPES = {"story": SmallStory, "python": SmallPython, "induction": ShortInduction}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.long
def test_training_in_pieces_is_training_at_once_and_its_files_load(name, tmp_path):
    at_once, pieces, shipped = (tmp_path / part for part in ("at_once", "pieces", "shipped"))
    train(RECIPES[name](), at_once, steps=3)
    train(RECIPES[name](), pieces, steps=2)
    train(RECIPES[name](), pieces, steps=3)
    ours, expected = (torch.load(out / CHECKPOINT, weights_only=True) for out in (at_once, pieces))
    assert ours["step"] == expected["step"] == 3
    for key, weight in ours["model"].items():
        assert torch.equal(weight, expected["model"][key])

    recipe = RECIPES[name]()
    export(recipe, pieces, shipped)
    variants = [f"step{step}" for step in recipe.snapshots] or [None]
    assert len(list(shipped.glob("*.safetensors"))) == len(variants)
    model = AutoModelForCausalLM.from_pretrained(shipped, variant=variants[-1])
    assert model.dtype == torch.float32
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, expected["model"][key].half().float())
    for file in ("config.json", *TOKENIZER):
        assert (shipped / file).read_bytes() == (folder(MODELS[name]) / file).read_bytes()


def test_snapshots_are_the_weights_of_their_steps(tmp_path):
    train(ShortInduction(), tmp_path, steps=3)
    torch.manual_seed(ShortInduction.seed)
    start = ShortInduction().build().state_dict()
    for key, weight in load_file(tmp_path / "model.step0.safetensors").items():
        assert torch.equal(weight, start[key].half())
    later = [load_file(tmp_path / f"model.step{step}.safetensors") for step in (2, 3)]
    assert not all(torch.equal(later[0][key], later[1][key]) for key in later[0])


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_their_rows(tmp_path):
    recipe = InductionRecipe()
    recipe.processes, recipe.snapshots = 2, (1,)
    train(recipe, tmp_path, steps=1)
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    batch = recipe.draw(0)
    for rank in range(2):
        (recipe.loss(model, batch.rows(slice(rank, None, 2)))[0] / 2).backward()
    recipe.limit_gradients(model)
    for optimizer, factor in recipe.optimizers(model):
        optimizer.param_groups[0]["lr"] = factor * recipe.rate_at(0)
        optimizer.step()
    trained = torch.load(tmp_path / CHECKPOINT, weights_only=True)["model"]
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(weight, trained[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["story", "python"])
def test_rate_warms_up_and_falls(name):
    recipe: Recipe = recipe_of(name)
    first, last = recipe.phases[0], recipe.phases[-1]
    assert recipe.rate_at(0) == pytest.approx(first.rate / recipe.warmup)
    assert recipe.rate_at(first.until - 1) == first.rate
    assert recipe.rate_at(last.until - 1) < 0.03 * last.rate


def test_rate_of_the_series_stays():
    recipe = recipe_of("induction")
    assert recipe.rate_at(49) == recipe.rate_at(999) == 1.0
