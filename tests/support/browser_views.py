"""What the views that the browser draws by itself are sent."""

import base64
import json
import zlib
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import xarray as xr
from streamlit.testing.v1 import AppTest

VIEWS = (
    "head_grid", "thumbnails", "token_view", "long_view", "finder", "examples", "query_keys",
    "pinned", "grid_A", "grid_B", "grid_difference", "timeline_grid", "relevance",
)  # fmt: skip


def browser_views(app: AppTest) -> dict[str, dict[str, Any]]:
    """Read the data of the views on the screen, by their keys."""
    result = {}
    for element in app.get("bidi_component"):
        for name in VIEWS:
            if element.proto.id.endswith(f"-{name}"):
                result[name] = json.loads(element.proto.json or element.proto.mixed.json)["data"]
    return result


def links(app: AppTest) -> list[Any]:
    """Return the links on the screen, without those of the navigation."""
    return [element.proto for element in app.main.get("page_link")]


def query_of(link: Any) -> dict[str, list[str]]:
    """Read what a link asks for."""
    return parse_qs(link.query_string.lstrip("?"))


def unpacked(text: str, dtype: str) -> np.ndarray:
    """Read a packed array of a view."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def weights(data: dict[str, Any]) -> np.ndarray:
    """Read the weights of a token view, queries by keys, from their three digits."""
    return read_codes(data["weights"]).reshape(len(data["queries"]), -1)


def read_codes(text: str) -> np.ndarray:
    """Read packed weights from their three digits."""
    codes = unpacked(text, "<u2").astype(int)
    return np.where(codes, (100 + (codes - 1) % 900) * 10.0 ** ((codes - 1) // 900 - 42), 0.0)


def dense_overview(weights: np.ndarray, tile: int) -> xr.Dataset:
    """Pool a whole matrix by memberships of blocks, in float64."""
    count = len(weights)
    blocks = -(-count // tile)
    member = np.equal.outer(np.arange(blocks), np.arange(count) // tile).astype(float)
    mean = member @ weights @ member.T / member.sum(axis=1)[:, None]
    padded = np.pad(weights, (0, blocks * tile - count), constant_values=-1)
    largest = padded.reshape(blocks, tile, blocks, tile).max(axis=(1, 3))
    entropy = -np.sum(np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-300)), 0), 1)
    received = weights.sum(axis=0) / np.arange(count, 0, -1)
    sides = ("query_tile", "key_tile")
    return xr.Dataset(
        {
            "pooled_max": (sides, largest), "pooled_mean": (sides, mean),
            "entropy": ("query", entropy), "received": ("key", received),
        },
        coords={"token": ("query", [f" w{at}" for at in range(count)]), "layer": 2, "head": 3},
        attrs={"tile": tile},
    )  # fmt: skip
