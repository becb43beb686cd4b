"""The model that ships with headscope: weights, tokenizer, and how it was made.

`headscope.probes.bundled.train` made the weights, `evaluate` measured them, ``README.md`` is the
model card.
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that holds the bundled model's files.

    >>> (folder() / "config.json").is_file()
    True
    """
    return Path(__file__).parent
