"""How the bundled models were made: one frame, and a recipe, rows and an evaluation for each."""

from importlib import import_module
from pathlib import Path

from headscope_training.recipe import Recipe

# Folder of each model, here and under `probes/bundled`, and its public name.
MODELS = {
    "story": "headscope/bundled",
    "python": "headscope/bundled-python",
    "induction": "headscope/induction",
}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model, by the name of its folder."""
    recipe: Recipe = import_module(f"headscope_training.{model}.recipe").RECIPE
    return recipe


def evaluate(model: str, source: Path) -> str:
    """Measure the files in a folder with the evaluation of a model; the text of its card.json."""
    card: str = import_module(f"headscope_training.{model}.evaluation").card(source)
    return card
