"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import xarray as xr

ROOT = Path(__file__).parents[2]
# Streamlit runs main.py and the screens as scripts; importing them would draw a page.
SCRIPTS = {"app/dashboard/main.py"}


def module_names() -> list[str]:
    names = []
    for part in ("kernels", "probes", "analyses", "viz", "app"):
        for path in sorted((ROOT / part).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if ">>>" in path.read_text() and str(relative) not in SCRIPTS:
                pieces = relative.with_suffix("").parts
                pieces = pieces[:-1] if pieces[-1] == "__init__" else pieces
                names.append(".".join(("headscope", *pieces)))
    return names


@pytest.mark.parametrize("name", module_names())
def test_docstring_examples(name):
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags, verbose=False)
    assert result.failed == 0
    assert result.attempted > 0


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_blocks_of_the_pages(page, monkeypatch):
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    text = page.read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, str(page), "exec"), names)
    calls = text.count("viz.show(") + text.count(".show()")
    assert len(shown) == calls, page
    for held in names.values():
        if isinstance(held, xr.Dataset) and "token" in held:
            assert "<unk>" not in held["token"].values
