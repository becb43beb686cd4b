"""Sparse autoencoders in the folders of SAELens: ``cfg.json`` and ``sae_weights.safetensors``.

Read and written without the package. Of a folder by SAELens, before and from version 6, everything
is read that changes the numbers; what is not known to leave them alone is refused by its name.
Written are the architectures standard, topk and jumprelu, in the layout of version 6.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.kernels.errors import InvalidInput
from headscope.probes.storage.dataset_file import refusing

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# The layout that is written, which SAELens reads by this number.
LAYOUT = "6.0.0"
ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
RENAMED = {
    "hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer", "activation_fn": "activation_fn_str",
}  # fmt: skip
# What the numbers follow from.
READ = {
    "architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations",
    "reshape_activations", "k", "rescale_acts_by_decoder_norm", "activation_fn_str",
    "activation_fn_kwargs", "finetuning_scaling_factor", "hook_name", "hook_layer",
    "hook_head_index",
}  # fmt: skip
# Where an autoencoder comes from and how it was trained, none of which changes what it computes.
ORIGIN = {
    "aux_loss_coefficient", "context_size", "dataset_path", "dataset_trust_remote_code",
    "decoder_init_norm", "device", "exclude_special_tokens", "hook_layer", "jumprelu_bandwidth",
    "jumprelu_init_threshold", "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale",
    "l0_coefficient", "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "lp_norm",
    "metadata", "model_class_name", "model_from_pretrained_kwargs", "model_name", "neuronpedia_id",
    "pre_act_loss_coefficient", "prepend_bos", "sae_lens_training_version", "sae_lens_version",
    "seqpos_slice", "topk_threshold_lr", "use_sparse_activations",
}  # fmt: skip


def load(folder: str | os.PathLike[str]) -> SparseAutoencoder:
    """Read a sparse autoencoder on head outputs that SAELens, or `save`, has written."""
    path = Path(folder)
    config = _config(path)
    kind, k = _activation(config)
    site = _site(config)
    tensors = _weights(path, config, kind)
    size, features = (_number(config, name) for name in ("d_in", "d_sae"))
    about = {name: config[name] for name in sorted(set(config) & ORIGIN - {"metadata"})}
    about |= config.get("metadata") or {}
    sae = SparseAutoencoder(kind, size, features, site, k=k, about=about)
    norms = tensors["W_dec"].norm(dim=1)
    if config.get("rescale_acts_by_decoder_norm", False):
        # Scores are multiplied by the norms and activations divided by them.
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if not config.get("apply_b_dec_to_input", True):
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    named = {
        "encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"
    }  # fmt: skip
    state = {own_name: tensors[saelens_name] for own_name, saelens_name in named.items()}
    state["threshold"] = tensors.get("threshold", torch.zeros(features))
    sae.load_state_dict(state)
    return sae.requires_grad_(False)


def save(
    sae: SparseAutoencoder, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a sparse autoencoder as SAELens does, whole or not at all.

    One by BatchTopK is written with its threshold, as jumprelu.
    """
    from safetensors.torch import save_file

    path = Path(folder)
    check_free(path, overwrite=overwrite)
    single = sae.site.head is not None
    architecture = {"relu": "standard", "topk": "topk"}.get(sae.kind, "jumprelu")
    config: dict[str, Any] = {
        "d_in": sae.size, "d_sae": sae.features, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none" if single else "hook_z",
        "metadata": {
            **sae.about, "sae_lens_version": LAYOUT, "sae_lens_training_version": None,
            "hook_name": sae.site.hook_name, "hook_head_index": sae.site.head,
        },
        "architecture": architecture,
    }  # fmt: skip
    tensors: dict[str, Tensor] = {
        "W_enc": sae.encoder, "b_enc": sae.encoder_bias, "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }  # fmt: skip
    if architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = torch.relu(sae.threshold)
    plain = {name: part.detach().float().cpu().clone() for name, part in tensors.items()}
    with refusing("out", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            draft.chmod(0o755)
            save_file(plain, draft / WEIGHTS)
            (draft / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
            if path.exists():
                shutil.rmtree(path)
            os.replace(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is taken: by anything but an autoencoder, or by one that is to stay."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise InvalidInput(f"out: {path} holds no sparse autoencoder; give a new folder")
    if not overwrite:
        raise InvalidInput(f"out: {path} holds a sparse autoencoder; give --overwrite or a new one")


def _config(path: Path) -> dict[str, Any]:
    """Read the settings of either layout, under the names of version 5, metadata beside them."""
    file = path / CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"sae: {file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise InvalidInput(f"sae: {file} holds no settings")
    named: dict[str, Any] = settings
    config = {RENAMED.get(name, name): value for name, value in named.items()}
    metadata = config.get("metadata") or {}
    for name in ("hook_name_out", "hook_head_index_out"):
        if metadata.get(name, config.pop(name, None)) is not None:
            raise InvalidInput(f"sae: {name} is that of a transcoder, which is no autoencoder")
    for name in ("hook_name", "hook_head_index"):
        config.setdefault(name, metadata.get(name))
    unknown = sorted(set(config) - READ - ORIGIN)
    if unknown:
        raise InvalidInput(
            f"sae: {', '.join(unknown)} of {file} may change the numbers and is not known; "
            "save the autoencoder without it"
        )
    normalized = config.get("normalize_activations")
    if normalized not in (None, False, "none"):
        raise InvalidInput(
            f"sae: normalize_activations {normalized!r} is not supported; fold it into the weights"
        )
    return config


def _activation(config: Mapping[str, Any]) -> tuple[str, int]:
    """Return the kind and k."""
    architecture = config.get("architecture", "standard")
    function = config.get("activation_fn_str", "relu")
    more = dict(config.get("activation_fn_kwargs") or {})
    k = config.get("k", more.pop("k", None))
    if function == "topk" and architecture == "standard":
        architecture = "topk"
    if architecture not in ARCHITECTURES:
        hint = ""
        if architecture in ("batchtopk", "matryoshka_batchtopk"):
            hint = "; it is a state of training, save it for inference, as jumprelu"
        raise InvalidInput(
            f"sae: architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}{hint}"
        )
    if more or function not in ("relu", "topk"):
        raise InvalidInput(f"sae: activation_fn {function!r} {more or ''} is not supported")
    if architecture != "topk":
        return ARCHITECTURES[architecture], 0
    if not isinstance(k, int) or isinstance(k, bool):
        raise InvalidInput(f"sae: k is {k!r}, not a whole number")
    return "topk", k


def _site(config: Mapping[str, Any]) -> Site:
    """Return where the autoencoder reads, which must be head outputs."""
    name, head = config.get("hook_name"), config.get("hook_head_index")
    match = re.fullmatch(r"blocks\.(\d+)\.attn\.hook_z", str(name))
    if match is None:
        raise InvalidInput(
            f"sae: hook_name {name!r}; head outputs are read, at blocks.LAYER.attn.hook_z"
        )
    if head is not None and (not isinstance(head, int) or isinstance(head, bool)):
        raise InvalidInput(f"sae: hook_head_index is {head!r}, not a whole number")
    reshaped = config.get("reshape_activations", "none" if head is not None else "hook_z")
    if head is None and reshaped != "hook_z":
        raise InvalidInput(
            f"sae: reshape_activations {reshaped!r}; heads one after another are read, hook_z"
        )
    return Site(int(match[1]), head)


def _number(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"sae: {name} is {value!r}, not a whole number from 1")
    return value


def _weights(path: Path, config: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """Read the tensors that a kind has, and no others, in float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / WEIGHTS
    try:
        tensors = {name: part.float() for name, part in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"sae: {file} cannot be read: {error}") from error
    if kind == "jumprelu" and "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    scaling = tensors.pop("scaling_factor", torch.ones(1))
    if not bool((scaling == 1).all()):
        raise InvalidInput(f"sae: scaling_factor of {file} is not 1; fold it into the weights")
    size, features = (_number(config, name) for name in ("d_in", "d_sae"))
    shapes = {
        "W_enc": (size, features), "b_enc": (features,), "W_dec": (features, size),
        "b_dec": (size,), **({"threshold": (features,)} if kind == "jumprelu" else {}),
    }  # fmt: skip
    for name in sorted({*shapes, *tensors}):
        if name not in tensors or name not in shapes:
            raise InvalidInput(
                f"sae: {file} {'has no' if name in shapes else 'holds'} {name}; of its kind it has "
                f"{', '.join(shapes)}"
            )
        if tuple(tensors[name].shape) != shapes[name]:
            raise InvalidInput(
                f"sae: {name} of {file} is {tuple(tensors[name].shape)}, not {shapes[name]}"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise InvalidInput(f"sae: {name} of {file} holds NaN or infinity")
    return tensors
