"""Read texts, token ids, pairs, images or a task into the tokens of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.models import vision
from headscope.probes.models.pair import Pair, encode_target
from headscope.probes.prompts.prompt_batch import Prompts
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokenized_text import unknown_id
from headscope.probes.prompts.tokens import encode

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

    PromptsLike = str | Pair | Sequence[str | Sequence[int] | Pair] | Task


def read(model: Model, prompts: PromptsLike) -> Prompts:
    """Convert prompts of a user into token ids, and refuse those that the model cannot read."""
    if model.reads == "images":
        if isinstance(prompts, Task):
            raise NotApplicable(
                f"task: its prompts are texts, and {model.architecture} reads images"
            )
        return vision.read(model, prompts)
    decoding = model.attention in ("decoder", "cross")
    if isinstance(prompts, Task):
        if decoding:
            raise NotApplicable(
                f"task: its prompts are single texts, and the {model.attention} attention of "
                f"{model.name} needs Pair(source=..., target=...)"
            )
        encoded = encode(prompts, model.tokenizer, model.bos)
        result = Prompts(
            encoded.ids, prompts.name, prompts.seed, encoded, register=prompts.register
        )
    else:
        texts = _listed(model, prompts)
        pairs = [_pair(model, at, prompt) for at, prompt in enumerate(texts)]
        if decoding:
            sources, targets = zip(*pairs, strict=True) if pairs else ((), ())
            result = Prompts(targets, sources=sources, crossed=model.attention == "cross")
        else:
            result = Prompts(tuple(source for source, _ in pairs))
    if not result.ids:
        raise InvalidInput("prompts: there are none; give at least one text or list of token ids")
    vocabulary = model.vocabulary
    for part in (result.sources, result.ids):
        for row, ids in enumerate(part):
            _refuse_outside(vocabulary, row, ids)
        model.check_lengths([len(ids) for ids in part])
    return result


def _refuse_outside(vocabulary: int, row: int, ids: Sequence[int]) -> None:
    """Refuse an empty prompt, and token ids outside the vocabulary."""
    if not ids:
        raise InvalidInput(f"prompts: prompt {row + 1} is empty; give it at least one token")
    different = set(ids)
    if min(different) < 0 or max(different) >= vocabulary:
        wrong = next(token for token in ids if not 0 <= token < vocabulary)
        raise InvalidInput(
            f"prompts: token id {wrong} of prompt {row + 1} is outside the vocabulary, "
            f"0 to {vocabulary - 1}"
        )


def _pair(model: Model, at: int, prompt: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Read one prompt: what a model or its encoder reads, and what its decoder does."""
    if not isinstance(prompt, Pair):
        if model.attention in ("decoder", "cross"):
            raise NotApplicable(
                f"prompts: prompt {at + 1} is one text, and the {model.attention} attention of "
                f"{model.name} needs Pair(source=..., target=...)"
            )
        return _ids(model, at, prompt), ()
    if model.attention == "self":
        raise InvalidInput(
            f"prompts: prompt {at + 1} is a Pair, and {model.name} has no encoder and decoder; "
            "give a text or token ids"
        )
    source = _ids(model, at, prompt.source)
    if model.attention == "encoder":
        return source, ()  # what the decoder reads changes nothing there
    if not isinstance(prompt.target, str):
        return source, _ids(model, at, prompt.target)
    target = tuple(encode_target(model, prompt.target))
    _refuse_unknown(model, at, prompt.target, target)
    return source, target


def _listed(model: Model, prompts: Any) -> list[Any]:
    """List the prompts; what a tokenizer returned is its rows, without their padding."""
    if isinstance(prompts, str | Pair):
        return [prompts]
    if isinstance(prompts, Mapping):
        if "input_ids" not in prompts:
            raise InvalidInput(
                f"prompts: a mapping of {', '.join(map(str, prompts))}; give texts, token ids, or "
                "what a tokenizer returns (input_ids, attention_mask)"
            )
        rows = _rows(prompts["input_ids"])
        if "attention_mask" in prompts:
            masks = _rows(prompts["attention_mask"])
            return [
                _unpadded(at, *row_and_mask)
                for at, row_and_mask in enumerate(zip_longest(rows, masks, fillvalue=()))
            ]
    else:
        rows = list(prompts)
    for at, row in enumerate(rows):
        _refuse_padding(model, at, row)
    return rows


def _rows(values: Any) -> list[Any]:
    """List rows of numbers; one alone is a row, too."""
    rows = [_plain(row) for row in values]
    return [rows] if rows and isinstance(rows[0], int) else rows


def _plain(row: Any) -> Any:
    return row.tolist() if hasattr(row, "tolist") else row


def _unpadded(at: int, row: Sequence[int], mask: Sequence[int]) -> list[int]:
    positions = [position for position, real in enumerate(mask) if real]
    if (
        len(mask) != len(row)
        or not positions
        or positions != list(range(positions[0], positions[-1] + 1))
    ):
        raise InvalidInput(
            f"attention_mask: that of prompt {at + 1} has holes, or another length than its ids; "
            "only padding at the ends can be left out"
        )
    return list(row[positions[0] : positions[-1] + 1])


def _refuse_padding(model: Model, at: int, row: Any) -> None:
    """Refuse token ids that begin or end with padding, which would count as text."""
    pad = getattr(model.tokenizer, "pad_token_id", None)
    ids = _plain(row)
    if pad is None or not isinstance(ids, Sequence) or isinstance(ids, str) or len(ids) < 2:
        return
    # One such token may be the beginning or the end of the text, where they are the same.
    ends = (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id)
    for side, token, beside, end in (
        ("begins", ids[0], ids[1], ends[0]),
        ("ends", ids[-1], ids[-2], ends[1]),
    ):
        if token == pad and (beside == pad or pad != end):
            raise InvalidInput(
                f"prompts: prompt {at + 1} {side} with padding (token {pad}); give what the "
                "tokenizer returns with its attention_mask, or the ids without padding"
            )


def _chat(model: Model, at: int, messages: Sequence[Mapping[str, Any]]) -> str:
    """Write messages as the tokenizer's chat template does, ready for the next answer."""
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise InvalidInput(
            f"prompts: prompt {at + 1} is a chat, and the tokenizer of {model.name} has no chat "
            "template; give a text"
        )
    asks = messages[-1].get("role") != "assistant"
    text: str = model.tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=asks
    )
    return text


def _ids(model: Model, at: int, prompt: Any) -> tuple[int, ...]:
    if (
        isinstance(prompt, Sequence)
        and prompt
        and all(isinstance(part, Mapping) for part in prompt)
    ):
        prompt = _chat(model, at, prompt)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InvalidInput(f"prompts: prompt {at + 1} is empty; give it at least one token")
        half = next(
            (index for index, mark in enumerate(prompt) if "\ud800" <= mark <= "\udfff"), -1
        )
        if half >= 0:
            raise InvalidInput(
                f"prompts: prompt {at + 1} holds half of a surrogate pair at character {half + 1}, "
                "which is no text; read the file as UTF-8"
            )
        ids = tuple(model.encode(prompt))
        _refuse_unknown(model, at, prompt, ids)
        return ids
    ids = _plain(prompt)
    if not isinstance(ids, Sequence) or not all(
        issubclass(kind, int) for kind in set(map(type, ids))
    ):
        raise InvalidInput(
            f"prompts: prompt {at + 1} is a {type(prompt).__name__}; give texts or lists of token "
            "ids, one list a prompt"
        )
    return tuple(ids)


def _refuse_unknown(model: Model, at: int, text: str, ids: Sequence[int]) -> None:
    """Refuse words that would all become the same unknown token, and name them."""
    unknown = unknown_id(model.tokenizer)
    if unknown is None or unknown not in ids:
        return
    words = [word for word in dict.fromkeys(text.split()) if unknown in model.encode(word)]
    raise InvalidInput(
        f"prompts: the tokenizer does not know {', '.join(map(repr, words[:8]))} in prompt "
        f"{at + 1}; write other words, or give token ids"
    )
