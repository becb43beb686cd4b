"""What a task may say with a given tokenizer: words by kind, ordinary tokens, draws that fit."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.prompts.task import Prompt
from headscope.probes.prompts.tasks._natural_words import NATURAL
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.tokenized_text import Tokenizer, Unfit, tokenize
from headscope.probes.prompts.tokens import encode_prompt

# How byte-level and SentencePiece tokenizers write the space before a word.
MARKS = ("Ġ", "▁")
UNUSED = re.compile(r"<0x[0-9A-Fa-f]{2}>|[\[<]unused.*", re.IGNORECASE)
# Byte-level tokenizers write line feeds and tabs as letters of their own.
SPACES = re.compile(r"[ĠĊĉčĠ▁\s]*")
REGISTERS = ("plain", "natural")
# Draws of one prompt before a tokenizer counts as one that allows none.
ATTEMPTS = 200
# As many words of one token are enough to do without the others.
ENOUGH = 8


def knows_only_words(tokenizer: Any) -> bool:
    """Whether a tokenizer holds a list of whole words and can spell no other.

    The bundled models of generated text have such a one: they know the words of the plain register
    and nothing else.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "model", None)).__name__ == "WordLevel"


class Vocabulary:
    """Words by kind in a register, and the prompts that a tokenizer allows.

    Parameters
    ----------
    tokenizer
        Tokenizer of the model; None allows every prompt.
    size
        Number of token ids, where there is no tokenizer.
    register
        ``plain`` or ``natural``; by default plain where the tokenizer knows whole words only (or
        there is nothing to go by), else natural.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        size: int | None = None,
        register: str | None = None,
    ) -> None:
        if register not in (None, *REGISTERS):
            raise InvalidInput(
                f"register: {register!r} is unknown; choose {' or '.join(REGISTERS)}"
            )
        self._tokenizer = tokenizer
        self._size = size
        self._whole_words = tokenizer is not None and knows_only_words(tokenizer)
        bare = tokenizer is None and size is None
        self.register = register or ("plain" if self._whole_words or bare else "natural")
        self.plain = self.register == "plain"
        self.redrawn = 0
        self._kinds = KINDS if self.plain else KINDS | NATURAL
        self._taken: dict[tuple[tuple[str, ...], int], tuple[str, ...]] = {}

    def take(self, *kinds: str, least: int = 1) -> tuple[str, ...]:
        """Words of the given kinds, in a fixed order.

        Of a tokenizer of whole words, those that it knows. Of another one, those of one token, or
        of any other number that enough words have, so that few prompts are drawn again; else all.
        No kind means every kind; fewer than ``least`` words are refused.

        >>> Vocabulary().take("brackets")
        ('(', ')', '[', ']', '{', '}')
        """
        if (kinds, least) not in self._taken:
            self._taken[kinds, least] = self._take(kinds, least)
        return self._taken[kinds, least]

    def _take(self, kinds: tuple[str, ...], least: int) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in self._kinds:
                raise InvalidInput(
                    f"kind: {kind!r} is unknown; choose among {', '.join(self._kinds)}"
                )
        chosen = kinds or tuple(self._kinds)
        words = tuple(dict.fromkeys(word for kind in chosen for word in self._kinds[kind]))
        sizes = self._sizes(words)
        single = tuple(word for word in words if sizes[word] == 1)
        if self._whole_words:
            words = single
        else:
            group = max((1, *sizes.values()), key=list(sizes.values()).count)
            for size in (1, group):
                of_size = tuple(word for word in words if sizes[word] == size)
                if len(of_size) >= max(ENOUGH, least):
                    words = of_size
                    break
        if len(words) < least:
            where = "known to this tokenizer" if self._whole_words else "in the list"
            raise NotApplicable(
                f"words: {len(words)} of kind {'+'.join(chosen)} are {where}, the task needs "
                f"{least}; ask for less or use another tokenizer"
            )
        return words

    def _sizes(self, words: tuple[str, ...]) -> dict[str, int]:
        """Return how many tokens each word is behind a space; 0 where it is unknown."""
        if self._tokenizer is None:
            return dict.fromkeys(words, 1)
        unknown = self._tokenizer.unk_token_id
        sizes = {}
        texts = tokenize(self._tokenizer, [f"a {word}" for word in words])
        for word, text in zip(words, texts, strict=True):
            positions = text.positions((2, 2 + len(word)))
            in_vocabulary = unknown is None or unknown not in [
                text.ids[position] for position in positions
            ]
            sizes[word] = len(positions) if in_vocabulary else 0
        return sizes

    def at_start(self, token: int) -> int:
        """Return the id of the same word at the start of a text, where no space stands before."""
        if self._tokenizer is None:
            return token
        tokenizer: Any = self._tokenizer
        name = str(tokenizer.convert_ids_to_tokens(token))
        return int(self._table.get(name[1:], token)) if name[0] == MARKS[0] else token

    @cached_property
    def _table(self) -> dict[str, int]:
        tokenizer: Any = self._tokenizer
        return dict(tokenizer.get_vocab())

    def ids(self, least: int) -> tuple[int, ...]:
        """Ids of whole words that the vocabulary holds, or of all ordinary tokens where it must.

        No special, added, unused, byte or whitespace token is among them.

        >>> Vocabulary(size=5).ids(least=3)
        (0, 1, 2, 3, 4)
        """
        if self._tokenizer is None:
            if self._size is None:
                raise NotApplicable("vocab_size: unknown; give a tokenizer or vocab_size")
            ids: tuple[int, ...] = tuple(range(self._size))
        else:
            table = _ordinary(self._tokenizer)
            words = _whole_words(table)
            ids = words if len(words) >= least else _readable(self._tokenizer, table)
        if len(ids) < least:
            raise NotApplicable(
                f"words: the vocabulary holds {len(ids)} ordinary tokens, the task needs "
                f"{least}; ask for less"
            )
        return ids

    def accept(self, n: int, draw: Callable[[int], Prompt | Sequence[Prompt]]) -> Iterator[Prompt]:
        """Draw prompts until `n` fit the tokenizer, and count in `redrawn` those that did not.

        ``draw`` makes the prompt of a number, or forms of it, of which the first that fits is
        taken. A tokenizer that allows none of many draws is refused.
        """
        for number in range(n):
            for _ in range(ATTEMPTS):
                prompt, reason = self._fitting(draw(number))
                if prompt is not None:
                    yield prompt
                    break
                self.redrawn += 1
            else:
                raise NotApplicable(
                    f"tokenizer: it allows none of {ATTEMPTS} draws of prompt {number + 1}, the "
                    f"last because of {reason}"
                )

    def _fitting(self, drawn: Prompt | Sequence[Prompt]) -> tuple[Prompt | None, str]:
        """Return the first form that the tokenizer allows, or why it does not allow the last."""
        reason = ""
        for prompt in [drawn] if isinstance(drawn, Prompt) else drawn:
            try:
                if self._tokenizer is not None:
                    encode_prompt(prompt, self._tokenizer)
                return prompt, ""
            except Unfit as error:
                reason = str(error)
        return None, reason


def _ordinary(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that text is made of: name to id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return {
        raw: token
        for raw, token in vocabulary.items()
        if token not in special and not UNUSED.fullmatch(raw) and not SPACES.fullmatch(raw)
    }


def _readable(tokenizer: Any, table: dict[str, int]) -> tuple[int, ...]:
    """Return the ids of a table that are text by themselves, not bytes of a character."""
    return tuple(
        token for token in sorted(table.values()) if "\ufffd" not in tokenizer.decode([token])
    )


def _whole_words(table: dict[str, int]) -> tuple[int, ...]:
    """Return the ids of words of letters that a table has with and without a space."""
    marked = [raw for raw in table if raw[0] in MARKS]
    words = {raw.lstrip("".join(MARKS)): table[raw] for raw in marked or table}
    return tuple(
        words[word]
        for word in sorted(words)
        if len(word) > 1 and word.isascii() and word.isalpha() and word in table
    )
