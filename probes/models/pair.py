"""Source and target of an encoder–decoder model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from headscope.kernels.errors import InvalidInput

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from headscope.probes.models.model import Model

    Ids: TypeAlias = (
        "Int[Tensor, 'batch position'] | Float[Tensor, 'batch channel height width'] | Pair"
    )


@dataclass(frozen=True)
class Pair:
    """A source for the encoder and a target for the decoder of one model.

    Attributes
    ----------
    source
        A text, or token ids as the encoder reads them.
    target
        A text, or token ids as the decoder reads them, its start token first. A text becomes what
        the decoder reads while it is taught to write it: the start token, then the text without
        the token that ends it.
    """

    source: Any
    target: Any


def start_token(model: Model) -> int:
    """Return the token that the decoder of a model starts with."""
    token = getattr(model.module.config, "decoder_start_token_id", None)
    if token is None:
        raise InvalidInput(
            f"target: {model.name} names no decoder_start_token_id; give token ids with the start "
            "token first"
        )
    return int(token)


def encode_target(model: Model, text: str) -> list[int]:
    """Convert a target text into the tokens that the decoder reads under teacher forcing."""
    if model.tokenizer is None:
        raise InvalidInput("tokenizer: text needs one; load_model(..., tokenizer=...) or give ids")
    written = [
        int(token) for token in model.tokenizer(text_target=text, verbose=False)["input_ids"]
    ]
    if written and written[-1] == model.tokenizer.eos_token_id:
        written.pop()
    return [start_token(model), *written]
