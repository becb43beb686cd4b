"""The models that ship with headscope: weights, tokenizer, card and README of each, no code.

``training/`` at the root of the repository holds how they were made and measured.
"""

from pathlib import Path

# Public name of each model and its folder here.
BUNDLED = {
    "headscope/bundled": "story",
    "headscope/bundled-python": "python",
    "headscope/induction": "induction",
}


def folder(name: str) -> Path:
    """The folder that holds the files of a bundled model.

    >>> (folder("headscope/bundled") / "config.json").is_file()
    True
    """
    return Path(__file__).parent / BUNDLED[name]
