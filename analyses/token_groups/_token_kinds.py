"""Kinds of tokens: the first one, special ones, punctuation, stop words, rare words, the others."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

FIRST, SPECIAL, PUNCTUATION, STOP, RARE, OTHER = KINDS = (
    "first", "special", "punctuation", "stop word", "rare", "other",
)  # fmt: skip
# Determiners, pronouns, prepositions, conjunctions and auxiliaries of English.
STOPS = """
    a an the this that these those i me my mine we us our ours you your yours he him his she her
    hers it its they them their theirs who whom whose which what there here and or but nor so
    yet if then than because while as until although though when where why how after before
    since in on at by for with about against between into through during above below to from up
    down of off over under out am is are was were be been being have has had having do does did
    doing will would shall should can could may might must not no all any both each few more
    most other some such only own same too very just again further once
"""
STOP_WORDS = frozenset(STOPS.split())


def of_texts(
    ids: Sequence[Sequence[int]],
    words: Sequence[Sequence[str]],
    special: Collection[int],
    rare: int,
) -> list[list[str]]:
    """Return the kind of every token of every prompt; the first kind that fits counts.

    ``first``: whatever stands first, a BOS or [CLS] where there is one; ``special``: of the
    tokenizer; ``punctuation``: no letter and no digit, so delimiters and line ends, too;
    ``stop word``: of English; ``rare``: at most ``rare`` times in all prompts together; ``other``.

    >>> of_texts([[0, 5, 6, 7, 7]], [["<bos>", " the", ".", " cat", " cat"]], {0}, 1)
    [['first', 'stop word', 'punctuation', 'other', 'other']]
    """
    counts = Counter(token for row in ids for token in row)

    def kind(at: int, token: int, word: str) -> str:
        text = word.strip().lower()
        if not at:
            return FIRST
        if token in special:
            return SPECIAL
        if not any(letter.isalnum() for letter in text):
            return PUNCTUATION
        if text in STOP_WORDS:
            return STOP
        return RARE if counts[token] <= rare else OTHER

    return [
        [kind(at, token, word) for at, (token, word) in enumerate(zip(*prompt, strict=True))]
        for prompt in zip(ids, words, strict=True)
    ]


def of_patches(names: Sequence[str]) -> list[str]:
    """Return the names of an image's patches and of what the model puts before them.

    >>> of_patches(["[CLS]", "[REG0]", "r0c0"])
    ['[CLS]', '[REG]', 'patch']
    """
    return [
        "[" + name.strip("[]").rstrip("0123456789") + "]" if name.startswith("[") else "patch"
        for name in names
    ]


def convention(rare: int, tokenizer: Any) -> str:
    """Describe what the kinds mean here."""
    caveat = "" if tokenizer is not None else "; no tokenizer, so tokens are known by number alone"
    return (
        "first: whatever stands first; punctuation: no letter or digit; stop words of English; "
        f"rare: at most {rare} time(s) in these prompts{caveat}"
    )
