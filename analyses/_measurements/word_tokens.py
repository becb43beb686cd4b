"""Tokens that people read as words, which labels and descriptions of heads are chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model


def word_tokens(model: Model) -> list[int]:
    """List the tokens that are letters alone, and begin a word where a tokenizer marks spaces.

    Vocabularies hold many more: parts of words, code, bytes, and tokens that training hardly saw.
    """
    if model.tokenizer is None:
        raise NotApplicable("model: labels are words; load the model with a tokenizer")
    words = [model.to_str_tokens([token])[0] for token in range(model.vocabulary)]
    marked = any(word.startswith(" ") and len(word) > 1 for word in words)
    return [token for token, word in enumerate(words) if _is_word(word, marked)]


def _is_word(text: str, marked: bool) -> bool:
    word = text[1:] if marked else text
    # A letter of the Latin alphabet alone is a part of words most often.
    return (
        text.startswith(" ") >= marked and word.isalpha() and (len(word) > 1 or not word.isascii())
    )
