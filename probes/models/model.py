"""A Hugging Face model, or a TransformerBridge around one, ready for capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.models.devices import input_device
from headscope.probes.prompts.tokenized_text import opening

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headscope.probes.models.bridge import AttentionWeights


TOKENS, IMAGES = "tokens", "images"
INPUTS = {"input_ids": TOKENS, "pixel_values": IMAGES}


@dataclass(frozen=True)
class Geometry:
    """The shape of a model's attention, as it arrives in our function.

    Attributes
    ----------
    layers
        Number of layers, those without an attention map included.
    heads, kv_heads
        Query heads and key-value heads of every layer.
    head_size, value_size
        Size of a query or key, and of a value.
    without
        Layers without an attention map, such as Mamba's and linear attention.
    crossed
        Whether keys are of another text than the queries, as in cross-attention.
    causal
        Whether no query sees a later key, in any layer.
    sigmoid
        Whether weights of some layer are sigmoids, so that rows do not sum to one.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    without: tuple[int, ...] = ()
    crossed: bool = False
    causal: bool = True
    sigmoid: bool = False

    @property
    def attending(self) -> list[int]:
        """Layers with an attention map."""
        return [layer for layer in range(self.layers) if layer not in self.without]


@dataclass(frozen=True)
class Model:
    """A model ready for capture; made by `load_model`, never changed by headscope.

    Attributes
    ----------
    module
        The Hugging Face model.
    tokenizer
        Its tokenizer, or None; without one, prompts are lists of token ids.
    name
        What the user called it: a name, a folder, or the class of the object given.
    revision
        Commit of the hub, or a digest of the weights.
    bridge
        The TransformerBridge around the module, or None.
    geometry
        Layers, heads and sizes, measured at load.
    attention
        The attention that is captured and edited: ``self``, or of an encoder–decoder model
        ``encoder``, ``decoder`` or ``cross``.
    processor
        Of a model that reads images, what makes its pixels from pictures, or None; without one,
        prompts are arrays of pixels.
    bos
        Whether a text begins with the beginning-of-sequence token; None follows the tokenizer.
    bridge_weights
        Which parameters the attention of the bridge had at load.
    """

    module: PreTrainedModel
    tokenizer: Any
    name: str
    revision: str
    bridge: Any
    geometry: Geometry
    attention: str = "self"
    processor: Any = None
    bos: bool | None = None
    bridge_weights: AttentionWeights = field(default=(), compare=False, repr=False)

    def __repr__(self) -> str:
        """Say what it is in one line; its module prints every layer."""
        grouped = f" ({self.kv_heads} KV heads)" if self.kv_heads != self.heads else ""
        bridge = ", in a TransformerBridge" if self.bridge is not None else ""
        return (
            f"<Model {self.name}: {type(self.module).__name__}{bridge}, {self.layers} layers of "
            f"{self.heads} heads{grouped}, {self.module.dtype} on {self.module.device}>"
        )

    @property
    def layers(self) -> int:
        """Number of layers, those without an attention map included."""
        return self.geometry.layers

    @property
    def heads(self) -> int:
        """Number of query heads in every layer."""
        return self.geometry.heads

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads in every layer, shared by groups of query heads."""
        return self.geometry.kv_heads

    @property
    def head_size(self) -> int:
        """Size of a query or key vector."""
        return self.geometry.head_size

    @cached_property
    def context(self) -> int | None:
        """Longest prompt in tokens, or None where the model names no limit."""
        config = self.module.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len")
        limit = max(int(getattr(config, name, None) or 0) for name in names)
        if limit <= 0:
            return None
        tables = [
            part
            for name, part in self.module.named_modules()
            if name.endswith("position_embeddings")
            and getattr(part, "num_embeddings", 0) == limit
            and getattr(part, "padding_idx", None) is not None
        ]
        # RoBERTa counts positions from the one after that of padding.
        return min([limit, *(limit - int(part.padding_idx) - 1 for part in tables)])

    @property
    def vocabulary(self) -> int:
        """Number of token ids the model has an embedding for; 0 where it reads images."""
        if self.reads != "tokens":
            return 0
        return int(self.module.config.get_text_config().vocab_size)

    @property
    def reads(self) -> str:
        """Kind of its prompts: ``tokens`` or ``images``."""
        return input_kind(self.module)

    @property
    def base(self) -> Any:
        """The part without a language-model head, whose output is the last hidden state."""
        base: Any = self.module.base_model
        if base is not self.module or self.module.get_output_embeddings() is None:
            return base
        # A class whose base_model_prefix names none of its attributes, such as Llama 4's.
        inner = [part for part in self.module.children() if hasattr(part, "get_input_embeddings")]
        if len(inner) != 1:
            raise UnsupportedModel(
                f"model: {self.architecture} has a language-model head and {len(inner)} inner "
                "models, not one; give the model inside it"
            )
        return inner[0]

    @property
    def rope_switch(self) -> int | None:
        """Length beyond which rotary frequencies change (LongRoPE, dynamic NTK), or None."""
        config = self.module.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        for kind in (rope, *(inner for inner in rope.values() if isinstance(inner, dict))):
            if kind.get("rope_type") in ("longrope", "dynamic"):
                name = "original_max_position_embeddings"
                original = kind.get(name) or getattr(config, name, None)
                return int(original or config.max_position_embeddings)
        return None

    @property
    def architecture(self) -> str:
        """Class of the Hugging Face model."""
        return type(self.module).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.module.dtype

    @property
    def device(self) -> torch.device:
        """Device of the tokens, which is that of the input embedding."""
        return input_device(self.module)

    def encode(self, text: str) -> list[int]:
        """Convert text into token ids, with the special tokens that the tokenizer puts around it.

        ``bos`` of the model says otherwise. A text that has the beginning-of-sequence token
        already, as chat templates write it, does not get a second one.

        >>> from headscope.probes import load_model
        >>> model = load_model("headscope/bundled")
        >>> model.encode("")[0] == model.tokenizer.bos_token_id
        True
        """
        if self.tokenizer is None:
            raise InvalidInput(
                "tokenizer: text needs one; load_model(..., tokenizer=...) or give ids"
            )
        ids = [int(token) for token in self.tokenizer(text, verbose=False)["input_ids"]]
        drop, put = opening(self.tokenizer, text, ids, self.bos)
        return [*put, *ids[drop:]]

    def to_str_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return one string a token, with its spaces; the ids themselves without a tokenizer.

        A character of several tokens stands at the first of them; the others are ``⋯``.

        >>> from headscope.probes import load_model
        >>> model = load_model("headscope/bundled")
        >>> model.to_str_tokens([model.tokenizer.bos_token_id])
        ['<bos>']
        """
        if self.tokenizer is None:
            return [str(int(token)) for token in ids]
        ids = [int(token) for token in ids]
        by_id = {token: self._str_token(token) for token in set(ids)}
        result: list[str] = []
        while len(result) < len(ids):
            at = len(result)
            if (text := by_id[ids[at]]) is not None:
                result.append(text)
                continue
            # A character has four bytes at most.
            for stop in range(at + 2, min(at + 4, len(ids)) + 1):
                decoded = self._decoded(ids[at:stop])
                if "\ufffd" not in decoded:
                    result += [decoded, *["⋯"] * (stop - at - 1)]
                    break
            else:
                result.append(str(self.tokenizer.convert_ids_to_tokens(ids[at])))
        return result

    def _str_token(self, token: int) -> str | None:
        """Return the string of a token; None for a part of a character."""
        raw = self.tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return str(token)
        if "▁" in raw:  # SentencePiece: decoding a single piece would drop its space
            return str(raw.replace("▁", " "))
        text = self._decoded([token])
        return None if "\ufffd" in text else text or str(raw)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def check_predicts(self) -> None:
        """Refuse a model that predicts no next token, so that no answer can be scored."""
        if self.reads == "images":
            raise NotApplicable(
                f"model: {self.architecture} reads images, so it predicts no next token"
            )
        if not self.geometry.causal:
            raise NotApplicable(
                f"model: {self.architecture} sees later tokens too, so it predicts no next token; "
                "scores of answers need a causal language model"
            )
        module: Any = self.module
        if module.get_output_embeddings() is None:
            raise NotApplicable(
                f"model: {self.architecture} has no language-model head, so it predicts no next "
                "token; load the class that has one"
            )

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Refuse prompts longer than the context, naming the first and both numbers."""
        for at, length in enumerate(lengths):
            if self.context is not None and length > self.context:
                raise NotApplicable(
                    f"prompts: prompt {at + 1} has {length} tokens, but the context of {self.name} "
                    f"is {self.context}; shorten it by {length - self.context}"
                )


def input_kind(module: Any) -> str:
    """Return the kind of prompts that a model reads: ``tokens`` or ``images``."""
    name = getattr(module, "main_input_name", "input_ids")
    if name not in INPUTS:
        raise UnsupportedModel(
            f"model: {type(module).__name__} reads {name}; only tokens (input_ids) and images "
            "(pixel_values) are known"
        )
    return INPUTS[name]
