"""A text in the tokens of a tokenizer, and where each token stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Span

Positions = tuple[int, ...]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that tasks need."""

    bos_token_id: int | None
    unk_token_id: int | None

    def __call__(self, text: Any, **options: Any) -> Any:
        """Token ids of texts, and where each stands."""
        ...


class Unfit(NotApplicable):
    """A prompt that a tokenizer does not allow; a task draws another in its place."""


@dataclass(frozen=True)
class TokenizedText:
    """A text in tokens, and the characters that each stands for (empty for special tokens)."""

    ids: Positions
    offsets: tuple[Span, ...]

    @property
    def stop(self) -> int:
        """Position behind the last token of the text; special tokens may follow."""
        inside = [at for at, (start, stop) in enumerate(self.offsets) if stop > start]
        return inside[-1] + 1 if inside else len(self.ids)

    def positions(self, span: Span) -> Positions:
        """Return the tokens that overlap a span of characters."""
        first, last = span
        return tuple(
            at
            for at, (start, stop) in enumerate(self.offsets)
            if start < min(stop, last) and max(start, first) < stop
        )

    def before(self, at: int) -> int:
        """Return the last token that ends at or before a character; `Unfit` across a token."""
        ends = [place for place, (start, stop) in enumerate(self.offsets) if start < stop <= at]
        if not ends or any(start < at < stop for start, stop in self.offsets):
            raise Unfit(f"at: no token ends at character {at}; ask at the end of a word")
        return ends[-1]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[TokenizedText]:
    """Turn texts into tokens, with the special tokens that the tokenizer adds by itself.

    >>> from headscope.probes import load_model
    >>> tokenizer = load_model("headscope/bundled").tokenizer
    >>> text = tokenize(tokenizer, ["note dog north."])[0]
    >>> text.offsets, text.positions((5, 8)), text.before(14)
    (((0, 0), (0, 4), (5, 8), (9, 14), (14, 15)), (2,), 3)
    """
    if not getattr(tokenizer, "is_fast", False):
        raise NotApplicable(
            f"tokenizer: {type(tokenizer).__name__} does not say where its tokens stand in a text; "
            "give a fast tokenizer (AutoTokenizer.from_pretrained(..., use_fast=True))"
        )
    # A tokenizer of images and text, or one that was told to pad, would otherwise add to the text.
    encoded = tokenizer(
        list(texts), return_offsets_mapping=True, padding=False, truncation=False, verbose=False
    )
    return [
        TokenizedText(tuple(map(int, ids)), tuple((int(start), int(stop)) for start, stop in spans))
        for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def special_ends(tokenizer: Tokenizer | None) -> tuple[Positions, Positions]:
    """Return the special tokens that a tokenizer puts before and after a text.

    >>> from headscope.probes import load_model
    >>> special_ends(load_model("headscope/bundled").tokenizer)
    ((0,), ())
    """
    if tokenizer is None:
        return (), ()
    empty, text = tokenize(tokenizer, ["", "a"])
    first = next((at for at, (start, stop) in enumerate(text.offsets) if stop > start), 0)
    # SentencePiece writes the space before a text as a token of no characters.
    first = min(first, len(empty.ids))
    return text.ids[:first], text.ids[text.stop :]
