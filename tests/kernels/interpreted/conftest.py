"""Triton kernels in Triton's interpreter, on the CPU: ``TRITON_INTERPRET=1 pytest -m interpreter``.

The default suite runs this folder in processes of their own (test_triton.py), because the variable
must be set before the kernels are imported, and must not be where they are compiled.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

# The table of variants that the panels are tested with, importable by name.
_spec = importlib.util.spec_from_file_location("panel_tests", HERE.parent / "test_statistics.py")
assert _spec is not None
assert _spec.loader is not None
sys.modules["panel_tests"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["panel_tests"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interpreter)


@pytest.fixture(autouse=True, scope="session")
def interpreter() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 for these tests"


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fill new tensors with NaN, so that what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
