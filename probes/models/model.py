"""Models: a Hugging Face model, or a TransformerBridge around one, ready for capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    without: tuple[int, ...] = ()
    crossed: bool = False
    causal: bool = True

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
    """

    module: PreTrainedModel
    tokenizer: Any
    name: str
    revision: str
    bridge: Any
    geometry: Geometry
    attention: str = "self"
    processor: Any = None

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
        """What its prompts are: ``tokens`` or ``images``."""
        from headscope.probes.models.vision import inputs

        return inputs(self.module)

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
        """Where the tokens go: the device of the input embedding."""
        from headscope.probes.models.devices import home

        return home(self.module)

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, with the beginning-of-sequence token first.

        The token is added where the tokenizer has one and does not add it by itself.

        Raises
        ------
        InvalidInput
            Without a tokenizer.

        Examples
        --------
        >>> from headscope.probes import load_model
        >>> model = load_model("headscope/bundled")
        >>> model.encode("")[0] == model.tokenizer.bos_token_id
        True
        """
        if self.tokenizer is None:
            raise InvalidInput(
                "tokenizer: text needs one; load_model(..., tokenizer=...) or give ids"
            )
        ids = [int(one) for one in self.tokenizer(text, verbose=False)["input_ids"]]
        first = self.tokenizer.bos_token_id
        if first is not None and ids[:1] != [first]:
            ids.insert(0, int(first))
        return ids

    def words(self, ids: Sequence[int]) -> list[str]:
        """Name token ids readably, one string a token, spaces kept; ids where no tokenizer is.

        Examples
        --------
        >>> from headscope.probes import load_model
        >>> model = load_model("headscope/bundled")
        >>> model.words([model.tokenizer.bos_token_id])
        ['<bos>']
        """
        if self.tokenizer is None:
            return [str(int(one)) for one in ids]
        known = {one: self._word(one) for one in {int(one) for one in ids}}
        return [known[int(one)] for one in ids]

    def _word(self, one: int) -> str:
        raw = self.tokenizer.convert_ids_to_tokens(one)
        if raw is None:
            return str(one)
        if "▁" in raw:  # SentencePiece: decoding a single piece would drop its space
            return str(raw.replace("▁", " "))
        text = str(self.tokenizer.decode([one], clean_up_tokenization_spaces=False))
        return text if text and "\ufffd" not in text else str(raw)

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


def load_model(
    source: Any,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    attention: str = "self",
) -> Model:
    """Load a model, by name, folder or object, and check that headscope reads it right.

    The check runs a short prompt: the logits and the statistics of every head must agree with
    the model's own eager attention, and an edit must change the output. Disagreement is refused.
    A model loaded by name or folder that has passed is not checked again until its files, the code
    or a version change; ``HEADSCOPE_CHECK=always`` in the environment checks it every time.

    Parameters
    ----------
    source
        ``"headscope/bundled"``, ``"headscope/bundled-python"`` or ``"headscope/induction"``, a
        folder saved with ``save_pretrained``, a name on the Hugging Face hub (each of them with
        ``@`` and a checkpoint or revision), a Hugging Face model, a TransformerBridge, or a
        `Model`.
    device
        Where to put it; the GPU when there is one. ``"auto"`` spreads it over all devices, and
        over memory and disk, with accelerate. An object given stays where it is.
    dtype
        Number format; float32 on the CPU, else the one it was saved in. An object given keeps
        its own.
    tokenizer
        A tokenizer, or the name or folder of one, where the source brings none; of a model that
        reads images, an image processor.
    attention
        Of an encoder–decoder model: ``encoder``, ``decoder`` (its self-attention) or ``cross``. A
        `Model` given with another attention is checked again with this one.

    Returns
    -------
    The model, in evaluation mode when loaded here; an object given is never changed.

    Raises
    ------
    InvalidInput
        For a model that is missing, whose attention neither goes through transformers' attention
        interface nor can be followed step by step, that uses a variant of attention that the
        engine does not know, holds NaN, or fails the check; for an attention that it does not
        have, and without one for an encoder–decoder model.

    Examples
    --------
    >>> model = load_model("headscope/bundled")
    >>> model.heads, model.kv_heads
    (8, 4)
    """
    if isinstance(source, Model) and attention in ("self", source.attention):
        return source
    from headscope.probes.attention.load_check import inspect
    from headscope.probes.attention.load_check_cache import inspect_once
    from headscope.probes.models.bridge import is_bridge, unwrapped
    from headscope.probes.models.encoder_decoder import choose
    from headscope.probes.models.source import fetch, fingerprint, place
    from headscope.probes.models.vision import IMAGES, inputs

    if isinstance(source, Model):
        return inspect(replace(source, attention=choose(source.module, attention)))

    if isinstance(source, str | PathLike):
        module, found, name, revision = fetch(source, device, dtype, tokenizer)
        bridge = None
    elif is_bridge(source):
        bridge, module = source, source.original_model
        found = tokenizer if tokenizer is not None else source.tokenizer
        with unwrapped(bridge):  # without the bridge's own copies of the weights
            name, revision = str(source.cfg.model_name), fingerprint(module)
        place(module, device, dtype)
    else:
        bridge, module, found = None, source, tokenizer
        if not hasattr(module, "config") or not hasattr(module, "base_model"):
            raise InvalidInput(
                f"model: {type(source).__name__} is none of a name, a folder, a Hugging Face "
                "model or a TransformerBridge"
            )
        name = str(getattr(module.config, "name_or_path", "") or type(module).__name__)
        revision = fingerprint(module)
        place(module, device, dtype)
    if isinstance(found, str | PathLike):
        from headscope.probes.models.source import fetch_tokenizer

        found = fetch_tokenizer(found, images=inputs(module) == IMAGES)
    chosen = choose(module, attention)
    empty = Geometry(0, 0, 0, 0, 0)
    pictures = inputs(module) == IMAGES
    words, processor = (None, found) if pictures else (found, None)
    model = Model(module, words, name, revision, bridge, empty, chosen, processor)
    return inspect_once(model, source) if isinstance(source, str | PathLike) else inspect(model)
