"""Delimiters of a text: its first special token, later ones such as [SEP], and punctuation."""

import unicodedata
from collections.abc import Sequence

from headscope.probes.models.model import Model

NAMES = ("beginning", "separator", "punctuation")
# Special to a tokenizer, but these stand for words.
WORDS = ("unk_token_id", "mask_token_id")


def positions(model: Model, prompts: Sequence[Sequence[int]]) -> dict[str, list[list[int]]]:
    """Return the positions of every kind of delimiter in every prompt; kinds without any left out.
    The model's tokenizer says which tokens are special and what the others are; without one there
    are no delimiters.

    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> positions(model, [model.encode("Mary went to the store .")])
    {'beginning': [[0]], 'punctuation': [[6]]}
    """
    special = set(getattr(model.tokenizer, "all_special_ids", None) or [])
    special -= {getattr(model.tokenizer, name, None) for name in WORDS}
    named = model.tokenizer is not None
    by_kind: dict[str, list[list[int]]] = {name: [] for name in NAMES}
    for ids in prompts:
        texts = model.to_str_tokens(ids) if named else [""] * len(ids)
        marks = [token in special for token in ids]
        by_kind["beginning"].append([0] if marks[0] else [])
        by_kind["separator"].append([at for at, mark in enumerate(marks) if mark and at])
        by_kind["punctuation"].append(
            [at for at, text in enumerate(texts) if not marks[at] and is_punctuation(text)]
        )
    return {name: rows for name, rows in by_kind.items() if any(rows)}


def is_punctuation(word: str) -> bool:
    """Return whether a token is made of punctuation alone.

    >>> is_punctuation(" ."), is_punctuation("a."), is_punctuation(" ")
    (True, False, False)
    """
    signs = word.strip()
    return bool(signs) and all(unicodedata.category(sign)[0] == "P" for sign in signs)
