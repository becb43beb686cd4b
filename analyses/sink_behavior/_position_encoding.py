"""How a model tells positions apart, read from its capture, its config and its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# What architectures call a table with one vector a position.
TABLES = ("wpe", "position_embeddings", "position_embedding", "embed_positions")
BIASES = ("relative_attention_bias",)


def positional_encoding(capture: xr.Dataset, model: Model) -> str:
    """Name the positional encoding; several where a model has several.

    Rotary positions bring the name of their scaling (``default``, ``linear``, ``yarn`` ...), since
    scaled and plain rotary models place their sinks differently.
    """
    found = []
    names = {name.rpartition(".")[2]: part for name, part in model.module.named_modules()}
    kinds = {type(part).__name__ for part in names.values()}
    if any("Rotary" in kind for kind in kinds):
        found.append(f"rotary ({_scaling(model)})")
    if any(name in names for name in TABLES):
        found.append("absolute (one vector a position)")
    if any(name in names for name in BIASES):
        found.append("relative bias")
    if "alibi_slope" in capture.coords:
        found.append("ALiBi")
    return ", ".join(found) or "none found"


def _scaling(model: Model) -> str:
    config: Any = model.module.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(one, dict) for one in given.values()):
        # One set of parameters a kind of layer.
        return ", ".join(sorted({one.get("rope_type", "default") for one in given.values() if one}))
    return str(given.get("rope_type", "default"))
