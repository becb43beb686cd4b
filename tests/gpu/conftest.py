"""Tests for a machine with a GPU: ``make test-gpu``.

They import torch, triton and pytest, and of headscope only its kernels, which need jaxtyping. On a
machine with nothing else: ``pytest -m gpu --confcutdir=tests/gpu tests/gpu``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _load(name: str, path: Path) -> None:
    """Make a test module importable by name: its folder is never on the path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


# How the panels are tested: drawing inputs, and the table of variants.
_load("panel_inputs", HERE.parent / "kernels" / "conftest.py")
_load("panel_tests", HERE.parent / "kernels" / "test_statistics.py")
_load("oracles", HERE / "oracles.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True, scope="session")
def device() -> torch.device:
    assert torch.cuda.is_available(), "these tests need a GPU"
    return torch.device("cuda")
