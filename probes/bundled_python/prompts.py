"""Prompts of real text: the openings of library files that training left out."""

from __future__ import annotations

from typing import Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.bundled_python import folder
from headscope.probes.bundled_python.corpus import sources

# More characters than any tokenizer's tokens hold on average, so that little is read in vain.
LONGEST = 24


def openings(number: int = 8, tokens: int = 512, tokenizer: Any = None) -> list[str]:
    """Cut held-out files of the running Python's library to their first `tokens` tokens.

    Each ends at the end of a line. The library is on every machine, so long real text is at hand
    for any model, without a download.

    Parameters
    ----------
    number
        How many files, longest first.
    tokens
        Length of a prompt in tokens with the one before the text, at least 16; cut to whole lines.
    tokenizer
        What to count in: the tokenizer of your model; default: that of the bundled model.

    Raises
    ------
    InvalidInput
        When fewer files are that long, with their number.

    Examples
    --------
    >>> text = openings(number=1, tokens=64)[0]
    >>> text.endswith("\\n")
    True
    """
    if number < 1 or tokens < 16:
        raise InvalidInput(
            f"number, tokens: {number} prompts of {tokens}; use 1 or more of 16 or more"
        )
    if tokenizer is None:
        from headscope.probes.models.source import fetch_tokenizer

        tokenizer = fetch_tokenizer(folder())
    files = sorted(sources(held_out=True), key=lambda one: (-len(one.text), one.path))
    found = []
    for file in files[:number]:
        text = _cut(file.text, tokens, tokenizer)
        if text is not None:
            found.append(text)
    if len(found) < number:
        raise InvalidInput(
            f"number: {len(found)} held-out files of this Python's library have {tokens} tokens; "
            "ask for fewer or shorter prompts"
        )
    return found


def _cut(text: str, tokens: int, tokenizer: Any) -> str | None:
    """Take as many whole lines as fit, or None where the text is shorter than that."""
    text = text[: LONGEST * tokens]
    if _count(text, tokenizer) <= tokens:
        return None
    lines = text.splitlines(keepends=True)
    low, high = 0, len(lines)
    while low + 1 < high:
        middle = (low + high) // 2
        fits = _count("".join(lines[:middle]), tokenizer) <= tokens
        low, high = (middle, high) if fits else (low, middle)
    return "".join(lines[:low]) or None


def _count(text: str, tokenizer: Any) -> int:
    ids = tokenizer(text, verbose=False)["input_ids"]
    return len(ids) + int(ids[:1] != [tokenizer.bos_token_id])
