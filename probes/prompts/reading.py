"""Read texts, token ids, pairs, images or a task into the tokens of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.models import vision
from headscope.probes.models.pair import Pair, encode_target
from headscope.probes.prompts.prompt_batch import Prompts
from headscope.probes.prompts.task import Task
from headscope.probes.prompts.tokens import encode

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

    Given = str | Pair | Sequence[str | Sequence[int] | Pair] | Task


def read(model: Model, prompts: Given) -> Prompts:
    """Turn what a user gives into token ids, and refuse what the model cannot take."""
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
        encoded = encode(prompts, model.tokenizer)
        result = Prompts(
            ids=tuple(tuple(map(int, ids)) for ids in encoded.ids),
            task=prompts.name,
            seed=prompts.seed,
            encoded=encoded,
        )
    else:
        texts = [prompts] if isinstance(prompts, str | Pair) else list(prompts)
        pairs = [_pair(model, at, given) for at, given in enumerate(texts)]
        if decoding:
            result = Prompts(
                ids=tuple(target for _, target in pairs),
                sources=tuple(source for source, _ in pairs),
                crossed=model.attention == "cross",
            )
        else:
            result = Prompts(ids=tuple(source for source, _ in pairs))
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


def _pair(model: Model, at: int, given: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Read one prompt: what a model or its encoder reads, and what its decoder does."""
    if not isinstance(given, Pair):
        if model.attention in ("decoder", "cross"):
            raise NotApplicable(
                f"prompts: prompt {at + 1} is one text, and the {model.attention} attention of "
                f"{model.name} needs Pair(source=..., target=...)"
            )
        return _ids(model, at, given), ()
    if model.attention == "self":
        raise InvalidInput(
            f"prompts: prompt {at + 1} is a Pair, and {model.name} has no encoder and decoder; "
            "give a text or token ids"
        )
    source = _ids(model, at, given.source)
    if model.attention == "encoder":
        return source, ()  # what the decoder reads changes nothing there
    if not isinstance(given.target, str):
        return source, _ids(model, at, given.target)
    target = tuple(encode_target(model, given.target))
    _refuse_unknown(model, at, given.target, target)
    return source, target


def _ids(model: Model, at: int, given: Any) -> tuple[int, ...]:
    if isinstance(given, str):
        if not given.strip():
            raise InvalidInput(f"prompts: prompt {at + 1} is empty; give it at least one token")
        ids = tuple(model.encode(given))
        _refuse_unknown(model, at, given, ids)
        return ids
    ids = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(ids, Sequence) or not all(
        issubclass(kind, int) for kind in set(map(type, ids))
    ):
        raise InvalidInput(
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
    raise InvalidInput(
        f"prompts: the tokenizer does not know {', '.join(map(repr, words[:8]))} in prompt "
        f"{at + 1}; write other words, or give token ids"
    )
