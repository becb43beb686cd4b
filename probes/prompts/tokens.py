"""Encode the text of a task as tokens of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import NotApplicable
from headscope.probes.prompts.tokenized_text import (
    TokenizedText,
    Unfit,
    special_ends,
    tokenize,
    unknown_id,
)

if TYPE_CHECKING:
    from headscope.probes.prompts.task import Prompt, Question, Span, Task
    from headscope.probes.prompts.tokenized_text import Positions, Tokenizer

    _Encoded = tuple[
        Positions, Positions, tuple["EncodedQuestion", ...], dict[str, tuple[Positions, ...]]
    ]


class Misaligned(Unfit):
    """A corrupted prompt whose tokens do not align with those of the clean one."""


@dataclass(frozen=True)
class EncodedQuestion:
    """A question in token positions: `at`, `evidence`; and in token ids: the continuations."""

    at: int
    answer_ids: Positions
    wrong_ids: Positions
    evidence: Positions


@dataclass(frozen=True)
class EncodedTask:
    """A task in the tokens of one tokenizer.

    One entry a prompt in `ids`, `corrupted_ids`, `questions`, `roles` and `spans`. A role holds all
    tokens of its spans; `spans` has them span by span, so that ``spans[row]["key"][2][-1]`` is
    the last token of the third key. Where corrupted prompts have other tokens at the places of the
    clean ones, `misaligned` says why, and `corrupted_ids` are refused.
    """

    name: str
    metric: str
    ids: tuple[Positions, ...]
    twins: tuple[Positions, ...]
    questions: tuple[tuple[EncodedQuestion, ...], ...]
    spans: tuple[dict[str, tuple[Positions, ...]], ...]
    redrawn: int = 0
    misaligned: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def corrupted_ids(self) -> tuple[Positions, ...]:
        """Ids of the corrupted prompts, each as long as its clean one."""
        if self.misaligned:
            raise NotApplicable(self.misaligned)
        return self.twins

    @property
    def question_positions(self) -> tuple[Positions, ...]:
        """Positions whose next token is asked for, rising, prompt by prompt."""
        return tuple(tuple(sorted({question.at for question in row})) for row in self.questions)

    @cached_property
    def roles(self) -> tuple[dict[str, Positions], ...]:
        """All tokens of each role, prompt by prompt."""
        return tuple(
            {role: tuple(dict.fromkeys(chain.from_iterable(at))) for role, at in row.items()}
            for row in self.spans
        )

    def corrupted(self) -> EncodedTask:
        """Ask the questions of the clean prompts on the corrupted ones."""
        return replace(self, ids=self.corrupted_ids)

    def part(self, prompts: Sequence[int]) -> EncodedTask:
        """Return a part with some of the prompts."""
        names = ("ids", "twins", "questions", "spans")
        parts: Any = {name: tuple(getattr(self, name)[row] for row in prompts) for name in names}
        return replace(self, **parts)


def encode(task: Task, tokenizer: Tokenizer | None, bos: bool | None = None) -> EncodedTask:
    """Encode a task: every text in one call of the tokenizer, with its own special tokens.

    Prompts of token ids do without a tokenizer. ``bos`` says whether texts begin with the
    beginning-of-sequence token; None follows the tokenizer.

    >>> from headscope.probes import load_model, tasks
    >>> tokenizer = load_model("headscope/bundled").tokenizer
    >>> encoded = encode(tasks.make("ioi", tokenizer, n=1), tokenizer)
    >>> encoded.questions[0][0].at == len(encoded.ids[0]) - 1
    True
    """
    rows = []
    misaligned = ""
    for number, prompt in enumerate(task.prompts, 1):
        try:
            try:
                rows.append(encode_prompt(prompt, tokenizer, bos))
            except Misaligned as error:
                rows.append(encode_prompt(prompt, tokenizer, bos, aligned=False))
                misaligned = misaligned or f"prompt {number} of {task.name}: {error}"
        except Unfit as error:
            raise NotApplicable(f"prompt {number} of {task.name}: {error}") from None
    ids, twins, questions, spans = zip(*rows, strict=True)
    return EncodedTask(
        task.name, task.metric, ids, twins, questions, spans, task.redrawn, misaligned
    )


def encode_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, bos: bool | None = None, *, aligned: bool = True
) -> _Encoded:
    """Encode one prompt: ids, corrupted ids, questions, and roles span by span.

    Without `aligned`, the corrupted prompt may have other tokens at the places of the clean one.
    `Unfit` where the tokenizer does not allow the prompt.
    """
    if not isinstance(prompt.clean, str):
        return _encode_ids(prompt, tokenizer, bos)
    if tokenizer is None:
        raise NotApplicable("tokenizer: a task needs one; load_model(..., tokenizer=...)")
    assert isinstance(prompt.corrupted, str)
    continued = [
        prompt.clean[: question.at] + str(continuation)
        for question in prompt.questions
        for continuation in (*question.answers, *question.wrong)
    ]
    texts = [prompt.clean, prompt.corrupted, *continued]
    clean, corrupted, *continuations = encoded = tokenize(tokenizer, texts, bos)
    for text, tokenized in zip(texts, encoded, strict=True):
        _refuse_unknown(tokenizer, text, tokenized)
    if aligned:
        _check_alignment(prompt, clean, corrupted)
    following = iter(continuations)
    questions = []
    for question in prompt.questions:
        at = clean.before(question.at)
        right, wrong = (
            [_first(next(following), clean, at) for _ in side]
            for side in (question.answers, question.wrong)
        )
        evidence = dict.fromkeys(at for span in question.evidence for at in clean.positions(span))
        sides = _distinct_first_tokens(question, right, wrong)
        questions.append(EncodedQuestion(at, *sides, tuple(evidence)))
    spans = {
        role: tuple(clean.positions(span) for span in spans_of)
        for role, spans_of in prompt.roles.items()
    }
    return clean.ids, corrupted.ids, tuple(questions), spans


def _encode_ids(prompt: Prompt, tokenizer: Tokenizer | None, bos: bool | None) -> _Encoded:
    """Add the special tokens of a text around token ids."""
    start, end = special_ends(tokenizer, bos)
    shift = len(start)

    def positions(span: Span) -> Positions:
        return tuple(range(span[0] + shift, span[1] + shift))

    questions = tuple(
        EncodedQuestion(
            question.at - 1 + shift,
            tuple(map(int, question.answers)),
            tuple(map(int, question.wrong)),
            tuple(position for span in question.evidence for position in positions(span)),
        )
        for question in prompt.questions
    )
    ids, corrupted = (
        (*start, *map(int, content), *end) for content in (prompt.clean, prompt.corrupted)
    )
    spans = {role: tuple(map(positions, spans_of)) for role, spans_of in prompt.roles.items()}
    return ids, corrupted, questions, spans


def _first(continued: TokenizedText, clean: TokenizedText, at: int) -> int:
    """Return the first token of a continuation, behind tokens that it must not change."""
    behind = at + 1
    if continued.ids[:behind] != clean.ids[:behind] or continued.stop <= behind:
        raise Unfit("answers: a continuation changes the tokens before it; ask elsewhere")
    return continued.ids[behind]


def _distinct_first_tokens(
    question: Question, right: Sequence[int], wrong: Sequence[int]
) -> tuple[Positions, Positions]:
    """Return the first tokens of right and wrong continuations without those of both sides."""
    sides = tuple(
        tuple(dict.fromkeys(token for token in side if token not in other))
        for side, other in ((right, wrong), (wrong, right))
    )
    if not sides[0] or (wrong and not sides[1]):
        raise Unfit(
            f"answers: {question.answers[0]!r} and {question.wrong[0]!r} begin with the same "
            "token; ask behind what they share"
        )
    return sides[0], sides[1]


def _check_alignment(prompt: Prompt, clean: TokenizedText, corrupted: TokenizedText) -> None:
    """Refuse twins of which a position does not mean the same in both."""
    if len(clean.ids) != len(corrupted.ids):
        raise Misaligned(
            f"corrupted: {len(corrupted.ids)} tokens where the clean prompt has "
            f"{len(clean.ids)}; use words of as many tokens"
        )
    for before, after in prompt.changes:
        if clean.positions(before) != corrupted.positions(after):
            raise Misaligned(
                f"corrupted: {prompt.part(before)!r} and what stands there instead have different "
                "tokens; use words of as many tokens"
            )
    for question in prompt.questions:
        at = prompt.corrupted_position(question.at)
        if corrupted.before(at) != clean.before(question.at):
            raise Misaligned(
                "corrupted: a question stands at another token than in the clean prompt"
            )


def _refuse_unknown(tokenizer: Tokenizer, text: str, tokenized: TokenizedText) -> None:
    """Refuse words that would all become the same unknown token, and name them."""
    unknown = unknown_id(tokenizer)
    if unknown is None or unknown not in tokenized.ids:
        return
    words = [
        text[start:stop]
        for token, (start, stop) in zip(tokenized.ids, tokenized.offsets, strict=True)
        if token == unknown
    ]
    raise Unfit(
        f"words: this tokenizer does not know {', '.join(map(repr, dict.fromkeys(words)))}; "
        "use another word"
    )
