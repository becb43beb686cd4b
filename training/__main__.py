"""Train, export and measure the bundled models: ``python -P training {train,export,evaluate}``."""

import argparse
from pathlib import Path

from headscope.probes.bundled import folder
from headscope_training import MODELS, evaluate, recipe_of
from headscope_training.checkpoint import export
from headscope_training.loop import train


def main() -> None:
    """Read the command line and do what it names."""
    parser = argparse.ArgumentParser(prog="python -P training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train; goes on from the last checkpoint")
    training.add_argument("model", choices=MODELS)
    training.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    training.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    training.add_argument("--steps", type=int, help="stop after this step of the schedule")
    training.add_argument("--compile", action="store_true", help="pays on an idle machine")
    exporting = commands.add_parser("export", help="write a checkpoint as the files that ship")
    exporting.add_argument("model", choices=MODELS)
    exporting.add_argument("checkpoint", type=Path, help="folder that training wrote")
    exporting.add_argument("out", type=Path, help="folder to write")
    evaluating = commands.add_parser("evaluate", help="measure; the card's numbers as JSON")
    evaluating.add_argument("model", choices=MODELS)
    evaluating.add_argument("source", type=Path, nargs="?", help="default: the bundled model")
    evaluating.add_argument("--out", type=Path, help="file to write; printed if not given")
    options = parser.parse_args()
    if options.command == "train":
        train(recipe_of(options.model), options.out, options.every, options.steps, options.compile)
    elif options.command == "export":
        export(recipe_of(options.model), options.checkpoint, options.out)
    else:
        card = evaluate(options.model, options.source or folder(MODELS[options.model]))
        if options.out:
            options.out.write_text(card)
        else:
            print(card, end="")


if __name__ == "__main__":
    main()
