"""A view with its data, and the HTML that shows it without a server."""

import base64
import json
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import xarray as xr

SCRIPTS = (
    "base", "cells", "heads", "lines", "token_view", "attention_heads", "row_list",
    "relevance_view", "block_map", "long_view", "mount",
)  # fmt: skip
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class View:
    """A view that the browser draws: its kind, and its data as JSON.

    A notebook shows it by itself; ``save`` writes it as a page.
    """

    kind: str
    data: dict[str, Any] = field(repr=False)

    def html(self) -> str:
        """Return a part of a page, with the scripts and the data in it."""
        name = f"headscope-{uuid4().hex}"
        # No text of a prompt may end the script that carries it.
        data = json.dumps(self.data).replace("<", "\\u003c")
        run = (
            f"const root = document.getElementById({name!r}).attachShadow({{mode: 'open'}});"
            f"element('style', {{}}, root, {json.dumps(style())});"
            "const on = {pick() {}, state() {}};"
            f"mount(root, {{kind: {self.kind!r}}}, on).show({data});"
        )
        return f'<div id="{name}"></div>\n<script>(() => {{\n{script()}{run}\n}})();</script>'

    def _repr_html_(self) -> str:
        return self.html()

    def page(self) -> str:
        """Return a whole page, light or dark as the reader's browser is."""
        head = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>headscope</title>'
            '<meta name="viewport" content="width=device-width">'
            "<style>:root { color-scheme: light dark } "
            "body { color: CanvasText; background: Canvas; margin: 16px; "
            "font-family: system-ui, sans-serif }</style></head><body>"
        )
        return f"{head}\n<main>{self.html()}</main>\n</body></html>\n"

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, which opens without a server or a network."""
        path = Path(path)
        path.write_text(self.page(), encoding="utf-8")
        return path


@cache
def script() -> str:
    """Return the JavaScript of all views; ``mount(root, view, on)`` puts one into an element."""
    return "".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


@cache
def style() -> str:
    """Return the style sheet of all views."""
    return (FOLDER / "component.css").read_text(encoding="utf-8")


def packed(values: npt.ArrayLike, dtype: str) -> str:
    """Pack numbers for the browser: little-endian, deflated, as base64 text.

    >>> zlib.decompress(base64.b64decode(packed([1, 2], "<u2")))
    b'\\x01\\x00\\x02\\x00'
    """
    return base64.b64encode(zlib.compress(np.asarray(values, dtype=dtype).tobytes(), 6)).decode()


def attribute(array: xr.DataArray, name: str, default: str = "") -> str:
    """Read what a variable says of itself, such as its ``long_name``, as plain text."""
    return str(array.attrs.get(name) or default).rstrip(".")
