"""Prompts: texts, token ids or a task, read into the tokens of one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headscope.kernels.refusal import Refused

if TYPE_CHECKING:
    from headscope.probes.model import Model
    from headscope.probes.task import Task
    from headscope.probes.tokens import Encoded

    Given = str | Sequence[str] | Sequence[Sequence[int]] | Task


@dataclass(frozen=True)
class Prompts:
    """Prompts in the tokens of one model.

    Attributes
    ----------
    ids
        Token ids, one tuple per prompt, each as long as the prompt.
    task
        Name of the task they come from, or "".
    seed
        Seed of the task, or "".
    encoded
        The task's questions in token positions, or None without a task.
    """

    ids: tuple[tuple[int, ...], ...]
    task: str = ""
    seed: int | str = ""
    encoded: Encoded | None = None

    def digest(self) -> str:
        """Return the SHA-256 of the token ids."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()


def read(model: Model, prompts: Given) -> Prompts:
    """Turn what a user gives into token ids, and refuse what the model cannot take.

    Raises
    ------
    Refused
        For no prompts, an empty prompt, a prompt longer than the context (with both numbers),
        words that the tokenizer does not know, token ids outside the vocabulary, text without a
        tokenizer.
    """
    from headscope.probes.task import Task

    if isinstance(prompts, Task):
        if model.tokenizer is None:
            raise Refused("tokenizer: a task needs one; load_model(..., tokenizer=...)")
        from headscope.probes.tokens import encode

        encoded = encode(prompts, model.tokenizer)
        result = Prompts(
            ids=tuple(tuple(map(int, ids)) for ids in encoded.ids),
            task=prompts.name,
            seed=prompts.seed,
            encoded=encoded,
        )
    else:
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        result = Prompts(ids=tuple(_ids(model, at, given) for at, given in enumerate(texts)))
    if not result.ids:
        raise Refused("prompts: there are none; give at least one text or list of token ids")
    for at, ids in enumerate(result.ids):
        if not ids:
            raise Refused(f"prompts: prompt {at + 1} is empty; give it at least one token")
        wrong = [one for one in ids if not 0 <= one < model.vocabulary]
        if wrong:
            raise Refused(
                f"prompts: token id {wrong[0]} of prompt {at + 1} is outside the vocabulary, "
                f"0 to {model.vocabulary - 1}"
            )
    model.check_lengths([len(ids) for ids in result.ids])
    return result


def _ids(model: Model, at: int, given: Any) -> tuple[int, ...]:
    if isinstance(given, str):
        if not given.strip():
            raise Refused(f"prompts: prompt {at + 1} is empty; give it at least one token")
        found = tuple(model.encode(given))
        _refuse_unknown(model, at, given, found)
        return found
    ids = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(ids, Sequence) or not all(isinstance(one, int) for one in ids):
        raise Refused(
            f"prompts: prompt {at + 1} is a {type(given).__name__}; give texts or lists of token "
            "ids, one list a prompt"
        )
    return tuple(ids)


def _refuse_unknown(model: Model, at: int, text: str, ids: Sequence[int]) -> None:
    """Refuse words that would all become the same unknown token, and names them."""
    unknown = model.tokenizer.unk_token_id
    # Tokenizers without such a token often name the end-of-text token in its place.
    special = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
    if unknown is None or unknown in special or unknown not in ids:
        return
    words = [word for word in dict.fromkeys(text.split()) if unknown in model.encode(word)]
    raise Refused(
        f"prompts: the tokenizer does not know {', '.join(map(repr, words[:8]))} in prompt "
        f"{at + 1}; write other words, or give token ids"
    )


def batches(ids: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Yield rows of prompts of one length, at most `tokens` tokens a batch, longest last."""
    lengths = sorted({len(one) for one in ids})
    for length in lengths:
        rows = [row for row, one in enumerate(ids) if len(one) == length]
        size = max(1, tokens // length)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
