"""Load weights from bundled models, a folder or the hub; safetensors only, no remote code."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from headscope.kernels.errors import InvalidInput
from headscope.probes import constructed
from headscope.probes.models.checkpoints import commit
from headscope.probes.models.devices import input_device, weights
from headscope.probes.models.gguf_file import convert
from headscope.probes.models.model import IMAGES, input_kind
from headscope.probes.models.model_source import HUB, listed, locate
from headscope.probes.models.transformers_messages import first_line, quiet

# Larger weights are sampled, so that naming a model of many gigabytes stays a matter of moments.
WHOLE = 1 << 20


def fetch(
    source: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    tokenizer: Any,
) -> tuple[Any, Any, str, str]:
    """Load a model from a folder, a GGUF file or the hub: module, tokenizer, name and revision.

    A constructed model is built.
    """
    path, name, variant, revision, gguf = locate(source)
    if gguf is not None:
        convert(gguf, Path(path))
    spread = device == "auto"
    requested = None if spread else device
    target = torch.device(requested or ("cuda" if torch.cuda.is_available() else "cpu"))
    default = torch.float32 if target.type == "cpu" else "auto"
    kind = default if dtype is None else _dtype(dtype)
    if path in constructed.names():
        module, own_tokenizer = constructed.module(path).build()
        module = module.to(target) if kind == "auto" else module.to(target, kind)
        return module, own_tokenizer if tokenizer is None else tokenizer, name, fingerprint(module)
    local = Path(path).is_dir() or bool(commit(path, revision))
    if not local:
        _ping_hub(path, revision=revision)
    chosen: dict[str, Any] = {} if revision is None else {"revision": revision}
    if variant is not None:
        chosen["variant"] = variant
    if spread:
        chosen["device_map"] = "auto"
    with quiet():
        try:
            config = AutoConfig.from_pretrained(
                path, revision=revision, trust_remote_code=False, local_files_only=local
            )
            if "flash" in str(config._attn_implementation):
                # Ours takes its place, so that the package it asks for is not needed.
                chosen["attn_implementation"] = "eager"
            module, report = _class(config).from_pretrained(
                path,
                **chosen,
                dtype=kind,
                use_safetensors=True,
                local_files_only=local,
                output_loading_info=True,
            )
        except (
            OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError,
            SafetensorError,
        ) as error:  # fmt: skip
            raise InvalidInput(f"model: {name!r} does not load: {first_line(error)}") from error
    # A pooler reads the last hidden state, so nothing here depends on it, and many are not saved.
    unsaved = {name for name in report["missing_keys"] if "pooler." in name}
    missing = sorted(set(report["missing_keys"]) - unsaved)
    missing += sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise InvalidInput(
            f"model: {name!r} lacks weights, first {missing[0]}; is the folder complete?"
        )
    unused = sorted(map(str, report["unexpected_keys"]))
    if unused:
        raise InvalidInput(
            f"model: {name!r} holds {len(unused)} weights that {type(module).__name__} does not "
            f"use, first {unused[0]}; does its config name the right model_type?"
        )
    module = (module if spread else module.to(target)).eval().requires_grad_(False)
    for name in unsaved:
        # Not left as they were drawn: the same files are the same model.
        module.get_parameter(name).zero_()
    if tokenizer is None:
        tokenizer = fetch_tokenizer(path, False, input_kind(module) == IMAGES, revision)
    revision_id = "" if Path(path).is_dir() else commit(path, revision)
    return module, tokenizer, name, revision_id or fingerprint(module)


def _class(config: Any) -> Any:
    """Find the class that a model was saved from: an encoder is no causal language model."""
    import transformers

    for name in config.architectures or ():
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def fetch_tokenizer(
    path: str | os.PathLike[str],
    required: bool = True,
    images: bool = False,
    revision: str | None = None,
) -> Any:
    """Load a tokenizer, or an image processor, from a folder or the hub; None where none is."""
    if not Path(path).is_dir() and not re.fullmatch(HUB, str(path)):
        raise InvalidInput(f"tokenizer: there is no folder {path}")
    local = Path(path).is_dir() or bool(commit(str(path), revision))
    if not local:
        _ping_hub(str(path), "tokenizer", revision)
    try:
        with quiet():
            kind: Any = AutoImageProcessor if images else AutoTokenizer
            options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
            reader = kind.from_pretrained(path, revision=revision, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if required:
            raise InvalidInput(f"tokenizer: {path} does not load: {first_line(error)}") from error
        return None
    # From a folder without tokenizer files, transformers makes one that knows no word.
    if images or set(reader.get_vocab()) - set(reader.all_special_tokens):
        return reader
    if required:
        raise InvalidInput(f"tokenizer: {path} holds no tokenizer files; give a folder with them")
    return None


def refuse_moving(
    module: nn.Module, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> None:
    """Refuse to move an object that belongs to the user."""
    weight, current = next(module.parameters()), input_device(module)
    if device == "auto":
        raise InvalidInput(
            f"device: the model given is on {current}; only a name or a folder is spread"
        )
    if device is not None and torch.device(device).type != current.type:
        raise InvalidInput(f"device: the model given is on {current}; move it with model.to()")
    if dtype is not None and _dtype(dtype) != weight.dtype:
        raise InvalidInput(f"dtype: the model given is {weight.dtype}; convert it with model.to()")


def fingerprint(module: nn.Module) -> str:
    """Digest the weights, whatever their names: the same model gives the same digest.

    Weights that accelerate keeps in memory or on disk count as if they were loaded.
    """
    digests = []
    for _, tensor in weights(module):
        flat = tensor.detach().reshape(-1)
        if flat.numel() > WHOLE:
            flat = flat[:: flat.numel() // WHOLE]
        # In float32, which holds every half precision exactly: casting up is the same model.
        data = flat.cpu().float().contiguous().numpy().tobytes()
        digests.append(hashlib.sha256(repr(tuple(tensor.shape)).encode() + data).hexdigest())
    return "sha256:" + hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]


def _ping_hub(name: str, field: str = "model", revision: str | None = None) -> None:
    """Ask the hub once, shortly: the loaders would try again for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    label = name if revision is None else f"{name}@{revision}"
    missing = f"{field}: {label!r} is no folder, is not in the local cache, and"
    try:
        HfApi().model_info(name, revision=revision, timeout=5)
    except RevisionNotFoundError as error:
        refs = HfApi().list_repo_refs(name)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        raise InvalidInput(
            f"{missing} {name} has no revision {revision!r} on the hub; it has {listed(names)}"
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidInput(f"{missing} the hub has no model of that name") from error
    except Exception as error:
        raise InvalidInput(
            f"{missing} the hub cannot be reached; give a folder saved with save_pretrained"
        ) from error


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if kind not in (torch.float32, torch.float16, torch.bfloat16):
        raise InvalidInput(f"dtype: no {dtype!r}; choose float32, bfloat16 or float16")
    return kind
