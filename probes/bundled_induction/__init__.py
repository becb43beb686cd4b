"""The bundled series of checkpoints: a two-layer Llama in which induction emerges.

`headscope.probes.bundled_induction.train` made the weights, `evaluate` measured them, ``README.md``
is the model card.
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that holds the files of every checkpoint.

    >>> (folder() / "config.json").is_file()
    True
    """
    return Path(__file__).parent
