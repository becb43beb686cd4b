"""The words a task may use with a given tokenizer."""

from headscope.kernels.errors import HeadscopeError, InvalidInput, NotApplicable
from headscope.probes.prompts.tasks._words import KINDS
from headscope.probes.prompts.tokens import Tokenizer, is_single

# How byte-level and SentencePiece tokenizers write the space before a word.
MARKS = ("Ġ", "▁")


class Vocabulary:
    """Words by kind, kept where the tokenizer holds them as one token.

    Parameters
    ----------
    tokenizer
        Tokenizer that must hold each word as one token; None keeps every word.

    Examples
    --------
    >>> "Mary" in Vocabulary().take("names", least=2)
    True
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._kinds = {
            kind: tuple(
                word
                for word in dict.fromkeys(listed)
                if tokenizer is None or is_single(tokenizer, word)
            )
            for kind, listed in KINDS.items()
        }

    def take(self, *kinds: str, least: int = 1) -> tuple[str, ...]:
        """Words of the given kinds, in a fixed order.

        Parameters
        ----------
        kinds
            Names of kinds; none means every kind.
        least
            How many words the task needs.

        Raises
        ------
        HeadscopeError
            If a kind is unknown or fewer than `least` words remain.

        Examples
        --------
        >>> Vocabulary().take("brackets")
        ('(', ')', '[', ']', '{', '}')
        """
        for kind in kinds:
            if kind not in self._kinds:
                raise InvalidInput(
                    f"kind: {kind!r} is unknown; choose among {', '.join(self._kinds)}"
                )
        chosen = kinds or tuple(self._kinds)
        words = tuple(dict.fromkeys(word for kind in chosen for word in self._kinds[kind]))
        if len(words) < least:
            raise NotApplicable(
                f"words: {len(words)} of kind {'+'.join(chosen)} are one token of this tokenizer, "
                f"the task needs {least}; ask for less or use another tokenizer"
            )
        return words

    def take_any(self, *kinds: str, least: int) -> tuple[str, ...]:
        """Words of the given kinds or, where these are too few, every word of the tokenizer.

        A tokenizer made on code or another language holds few common English words as one token;
        where the meaning of the words plays no part, its own words do as well.

        Raises
        ------
        HeadscopeError
            If fewer than `least` words remain either way.

        Examples
        --------
        >>> Vocabulary().take_any("brackets", least=3) == Vocabulary().take("brackets")
        True
        """
        try:
            return self.take(*kinds, least=least)
        except HeadscopeError:
            own = self._own()
            if len(own) < least:
                raise
            return own

    def _own(self) -> tuple[str, ...]:
        """List the words of letters that the tokenizer holds behind a space, in order."""
        vocabulary: dict[str, int] = getattr(self._tokenizer, "get_vocab", dict)()
        words = sorted(raw[1:] for raw in vocabulary if raw[:1] in MARKS and raw[1:].isalpha())
        return tuple(
            word
            for word in words
            if self._tokenizer is not None
            and len(word) > 1
            and is_single(self._tokenizer, word)
            # A prompt may begin with the word, where no space stands before it.
            and len(self._tokenizer.encode(word, add_special_tokens=False)) == 1
        )
