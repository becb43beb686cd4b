"""Load a model by name, folder or object, and check that its attention is read right."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from headscope.kernels.errors import InvalidInput
from headscope.probes.attention.load_check import inspect
from headscope.probes.attention.load_check_cache import check_cached
from headscope.probes.models.bridge import assembled, attention_weights, is_bridge
from headscope.probes.models.encoder_decoder import choose
from headscope.probes.models.model import IMAGES, Geometry, Model, input_kind
from headscope.probes.models.source import fetch, fetch_tokenizer, fingerprint, refuse_moving
from headscope.probes.models.wrappers import unwrap

if TYPE_CHECKING:
    import torch


def load_model(
    source: Any,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    attention: str = "self",
    bos: bool | None = None,
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
        constructed model such as ``"headscope/constructed-ioi"``, a folder saved with
        ``save_pretrained``, a name on the Hugging Face hub (folders and names also with ``@`` and a
        checkpoint or revision), ``"headscope/smollm2"`` once ``headscope models get`` has fetched
        it, a ``.gguf`` file (converted to float32 once), a Hugging Face model, also inside a
        pipeline, ``torch.compile``, ``DataParallel`` or PEFT's LoRA, a TransformerBridge, or a
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
    bos
        Whether every text begins with the beginning-of-sequence token. None follows the tokenizer,
        and of a TransformerBridge its ``default_prepend_bos``.

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
    if isinstance(source, Model) and bos is not None:
        source = replace(source, bos=_bos(source.tokenizer, bos))
    if isinstance(source, Model) and attention in ("self", source.attention):
        return source
    if isinstance(source, Model):
        return inspect(replace(source, attention=choose(source.module, attention)))

    bridge = None
    if isinstance(source, str | PathLike):
        module, reader, name, revision = fetch(source, device, dtype, tokenizer)
    elif is_bridge(source):
        bridge, module = source, source.original_model
        reader = tokenizer if tokenizer is not None else source.tokenizer
        with assembled(bridge):
            name, revision = str(source.cfg.model_name), fingerprint(module)
        refuse_moving(module, device, dtype)
    else:
        module, reader = unwrap(source, tokenizer)
        name = str(getattr(module.config, "name_or_path", "") or type(module).__name__)
        revision = fingerprint(module)
        refuse_moving(module, device, dtype)
    if isinstance(reader, str | PathLike):
        reader = fetch_tokenizer(reader, images=input_kind(module) == IMAGES)
    chosen = choose(module, attention)
    empty = Geometry(0, 0, 0, 0, 0)
    text_tokenizer, processor = (None, reader) if input_kind(module) == IMAGES else (reader, None)
    if (
        bridge is not None
        and bos is None
        and getattr(text_tokenizer, "bos_token_id", None) is not None
    ):
        bos = getattr(bridge.cfg, "default_prepend_bos", None)
    weights = () if bridge is None else attention_weights(bridge)
    bos = _bos(text_tokenizer, bos)
    model = Model(
        module, text_tokenizer, name, revision, bridge, empty, chosen, processor, bos, weights
    )
    return check_cached(model, source) if isinstance(source, str | PathLike) else inspect(model)


def _bos(tokenizer: Any, bos: bool | None) -> bool | None:
    if bos and getattr(tokenizer, "bos_token_id", None) is None:
        raise InvalidInput("bos: the tokenizer has no beginning-of-sequence token; leave bos out")
    return bos
