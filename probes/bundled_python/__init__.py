"""The bundled model of real text: a small GPT-2 trained on the Python standard library.

`headscope.probes.bundled_python.train` made the weights, `evaluate` measured them, ``README.md`` is
the model card.
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that holds the model's files.

    >>> (folder() / "config.json").is_file()
    True
    """
    return Path(__file__).parent
