"""Texts that sparse autoencoders are trained on, in the tokens of a model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.app.prompt_files import read_prompts
from headscope.probes.prompts.library import read_library
from headscope.probes.prompts.reading import read

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


def read_texts(model: Model, file: Path | None, tokens: int, seed: int) -> list[list[int]]:
    """Read a file of prompts whole, or files of Python's library until there are so many tokens.

    Files that `library.openings` cuts its prompts from are never among them. A text may be longer
    than the context of the model.
    """
    if file is not None:
        prompts = read_prompts(file)
        if isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts):
            return [model.encode(prompt) for prompt in prompts]
        return [list(ids) for ids in read(model, prompts).ids]
    files = read_library(held_out=False)
    random.Random(seed).shuffle(files)
    texts: list[list[int]] = []
    for source in files:
        if sum(map(len, texts)) >= tokens:
            break
        texts.append(model.encode(source.text))
    return texts
