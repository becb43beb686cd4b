"""What the views that the browser draws by itself are sent."""

import base64
import json
import zlib
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest


def browser_views(app: AppTest) -> dict[str, dict[str, Any]]:
    """Read the data of the views on the screen, by their keys."""
    found = {}
    for each in app.get("bidi_component"):
        for name in (
            "head_grid", "thumbnails", "token_view", "finder", "examples", "query_keys", "pinned"
        ):  # fmt: skip
            if each.proto.id.endswith(f"-{name}"):
                found[name] = json.loads(each.proto.json or each.proto.mixed.json)["data"]
    return found


def unpacked(text: str, dtype: str) -> np.ndarray:
    """Read a packed array of a view."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def weights(data: dict[str, Any]) -> np.ndarray:
    """Read the weights of a token view, queries by keys, from their three digits."""
    codes = unpacked(data["weights"], "<u2").astype(int)
    values = np.where(codes, (100 + (codes - 1) % 900) * 10.0 ** ((codes - 1) // 900 - 42), 0.0)
    return values.reshape(len(data["queries"]), -1)
