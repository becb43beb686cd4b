"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

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


def test_the_notebook_examples_of_the_readme(monkeypatch):
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for code in blocks:
        exec(compile(code, "README.md", "exec"), names)
    assert len(shown) == 2
    assert "<unk>" not in names["cap"]["token"].values
