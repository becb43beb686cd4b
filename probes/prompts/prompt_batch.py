"""Prompts: texts, token ids, pairs or a task, read into the tokens of one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.models.pair import Pair, encode_target

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headscope.probes.attention.forward import Ids
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

    Given = str | Pair | Sequence[str | Sequence[int] | Pair] | Task


@dataclass(frozen=True)
class Prompts:
    """Prompts in the tokens of one model.

    Attributes
    ----------
    ids
        Token ids of the queries, one tuple per prompt, each as long as the prompt.
    task
        Name of the task they come from, or "".
    seed
        Seed of the task, or "".
    encoded
        The task's questions in token positions, or None without a task.
    sources
        Where a decoder is captured, the token ids that its encoder reads, one tuple per prompt.
    crossed
        Whether the sources are the keys, as in cross-attention.
    pixels
        Of a model that reads images, what it reads (prompt, channel, height, width); ids then are
        the positions of the patches.
    names
        Names of the patches, the same for every image.
    """

    ids: tuple[tuple[int, ...], ...]
    task: str = ""
    seed: int | str = ""
    encoded: EncodedTask | None = None
    sources: tuple[tuple[int, ...], ...] = ()
    crossed: bool = False
    pixels: Float[Tensor, "prompt channel height width"] | None = None
    names: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of the keys, one tuple per prompt."""
        return self.sources if self.crossed else self.ids

    @property
    def longest(self) -> tuple[int, int]:
        """Largest number of queries and of keys."""
        return max(map(len, self.ids)), max(map(len, self.keys))

    def digest(self) -> str:
        """Return the SHA-256 of the token ids, or of the pixels."""
        if self.pixels is not None:
            shape = json.dumps(tuple(self.pixels.shape)).encode()
            return hashlib.sha256(shape + self.pixels.numpy().tobytes()).hexdigest()
        told = (self.sources, self.ids) if self.sources else self.ids
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def batches(self, tokens: int) -> Iterator[list[int]]:
        """Yield rows of prompts of one length, and of one length of their sources."""
        yield from batches(self.ids, tokens, self.sources)

    def stack(self, rows: Sequence[int]) -> Ids:
        """Stack prompts of one length to what a model is called with."""
        import torch

        if self.pixels is not None:
            return self.pixels[list(rows)]
        ids = torch.tensor([self.ids[row] for row in rows])
        if not self.sources:
            return ids
        return Pair(torch.tensor([self.sources[row] for row in rows]), ids)


def read(model: Model, prompts: Given) -> Prompts:
    """Turn what a user gives into token ids, and refuse what the model cannot take.

    Raises
    ------
    HeadscopeError
        For no prompts, an empty prompt, a prompt longer than the context (with both numbers), one
        text where a `Pair` is needed or the other way round, words that the tokenizer does not
        know, token ids outside the vocabulary, text without a tokenizer, what is no image for a
        model that reads images.
    """
    from headscope.probes.prompts.task import Task

    if model.reads == "images":
        if isinstance(prompts, Task):
            raise NotApplicable(
                f"task: its prompts are texts, and {model.architecture} reads images"
            )
        from headscope.probes.models import vision

        return vision.read(model, prompts)
    decoding = model.attention in ("decoder", "cross")
    if isinstance(prompts, Task):
        if decoding:
            raise NotApplicable(
                f"task: its prompts are single texts, and the {model.attention} attention of "
                f"{model.name} needs Pair(source=..., target=...)"
            )
        if model.tokenizer is None:
            raise NotApplicable("tokenizer: a task needs one; load_model(..., tokenizer=...)")
        from headscope.probes.prompts.tokens import encode

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
    for part in (result.sources, result.ids):
        for at, ids in enumerate(part):
            _check(model, at, ids)
        model.check_lengths([len(ids) for ids in part])
    return result


def _check(model: Model, at: int, ids: Sequence[int]) -> None:
    if not ids:
        raise InvalidInput(f"prompts: prompt {at + 1} is empty; give it at least one token")
    wrong = [one for one in ids if not 0 <= one < model.vocabulary]
    if wrong:
        raise InvalidInput(
            f"prompts: token id {wrong[0]} of prompt {at + 1} is outside the vocabulary, "
            f"0 to {model.vocabulary - 1}"
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
        found = tuple(model.encode(given))
        _refuse_unknown(model, at, given, found)
        return found
    ids = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(ids, Sequence) or not all(isinstance(one, int) for one in ids):
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


def batches(
    ids: Sequence[Sequence[int]],
    tokens: int,
    sources: Sequence[Sequence[int]] = (),
    waste: float = 0.0,
) -> Iterator[list[int]]:
    """Yield rows of prompts of similar length, at most `tokens` tokens a batch, longest last.

    At most a share ``waste`` of a batch is padding: of one length where it is 0. Sources in a batch
    are of one length.

    Examples
    --------
    >>> list(batches([[5] * 10, [5] * 9, [5] * 3], 100, waste=0.1))
    [[2], [1, 0]]
    """
    others = sources or [()] * len(ids)
    shapes = [(len(one), len(other)) for one, other in zip(ids, others, strict=True)]
    batch: list[int] = []
    for row in sorted(range(len(ids)), key=shapes.__getitem__):
        # Lengths rise, so that a new row makes all of them as long as itself.
        longest, beside = shapes[row]
        real = sum(shapes[one][0] for one in batch) + longest
        room = (len(batch) + 1) * longest
        large = room + (len(batch) + 1) * beside > tokens
        other = any(shapes[one][1] != beside for one in batch)
        if batch and (large or other or room - real > waste * room):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
