"""What the plotly charts on a screen were sent."""

import base64
import json
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest


def figures(app: AppTest) -> dict[str, dict[str, Any]]:
    """Read the figures of a screen, by the keys of their charts."""
    return {
        element.proto.id.rsplit("-", 1)[-1]: json.loads(element.proto.spec)
        for element in app.get("plotly_chart")
    }


def numbers(values: Any) -> Any:
    """Read values of a figure, which plotly packs where they are an array."""
    if not isinstance(values, dict):
        return values
    array = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    shape = values.get("shape")
    return array.reshape([int(size) for size in shape.split(",")]) if shape else array
