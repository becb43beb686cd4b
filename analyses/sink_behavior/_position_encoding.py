"""The positional encoding of a model, read from its capture, its config and its modules."""

from typing import Any

import xarray as xr

from headscope.probes.models.model import Model

# What architectures call a table with one vector a position.
TABLES = ("wpe", "position_embeddings", "position_embedding", "embed_positions")
BIASES = ("relative_attention_bias",)


def positional_encoding(capture: xr.Dataset, model: Model) -> str:
    """Return the name of the positional encoding; several where a model has several.

    Rotary positions bring the name of their scaling (``default``, ``linear``, ``yarn`` ...), since
    scaled and plain rotary models place their sinks differently.
    """
    encodings = []
    names = {name.rpartition(".")[2]: part for name, part in model.module.named_modules()}
    kinds = {type(part).__name__ for part in names.values()}
    if any("Rotary" in kind for kind in kinds):
        encodings.append(f"rotary ({_scaling(model)})")
    if any(name in names for name in TABLES):
        encodings.append("absolute (one vector a position)")
    if any(name in names for name in BIASES):
        encodings.append("relative bias")
    if "alibi_slope" in capture.coords:
        encodings.append("ALiBi")
    return ", ".join(encodings) or "none found"


def _scaling(model: Model) -> str:
    config: Any = model.module.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        # One set of parameters a kind of layer.
        kinds = {value.get("rope_type", "default") for value in rope.values() if value}
        return ", ".join(sorted(kinds))
    return str(rope.get("rope_type", "default"))
