"""A text in the tokens of a tokenizer, with the span of each token."""

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
        ends = [index for index, (start, stop) in enumerate(self.offsets) if start < stop <= at]
        if not ends or any(start < at < stop for start, stop in self.offsets):
            raise Unfit(f"at: no token ends at character {at}; ask at the end of a word")
        return ends[-1]


def unknown_id(tokenizer: Any) -> int | None:
    """Return the token that stands for unknown words, None where nothing is unknown.

    Tokenizers without such a token often name the end-of-text token in its place.
    """
    unknown: int | None = tokenizer.unk_token_id
    ends = (tokenizer.bos_token_id, getattr(tokenizer, "eos_token_id", None))
    return None if unknown in ends else unknown


def opening(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], bos: bool | None = None
) -> tuple[int, Positions]:
    """Return how many ids to drop from the start of a text, and what to put there instead.

    ``bos`` asks for the beginning-of-sequence token, or for none; None follows the tokenizer. A
    text that has it already, as chat templates write it, does not get a second one.
    """
    first = tokenizer.bos_token_id
    if first is None:
        return 0, ()
    present = next((at for at, token in enumerate(ids) if token != first), len(ids))
    written = text.startswith(str(getattr(tokenizer, "bos_token", "")) or "\0")
    prepend = written or (present > 0 if bos is None else bos)
    return present, (int(first),) * prepend


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], bos: bool | None = None
) -> list[TokenizedText]:
    """Convert texts into tokens, with the special tokens that the tokenizer adds by itself.

    ``bos`` is that of `opening`.

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
    tokenized = []
    for text, ids, spans in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        drop, put = opening(tokenizer, text, ids, bos)
        offsets = ((0, 0),) * len(put) + tuple((int(at), int(stop)) for at, stop in spans[drop:])
        tokenized.append(TokenizedText((*put, *map(int, ids[drop:])), offsets))
    return tokenized


def special_ends(
    tokenizer: Tokenizer | None, bos: bool | None = None
) -> tuple[Positions, Positions]:
    """Return the special tokens that a tokenizer puts before and after a text.

    >>> from headscope.probes import load_model
    >>> special_ends(load_model("headscope/bundled").tokenizer)
    ((0,), ())
    """
    if tokenizer is None:
        return (), ()
    empty, text = tokenize(tokenizer, ["", "a"], bos)
    first = next((at for at, (start, stop) in enumerate(text.offsets) if stop > start), 0)
    # SentencePiece writes the space before a text as a token of no characters.
    first = min(first, len(empty.ids))
    return text.ids[:first], text.ids[text.stop :]
