"""Triton kernels in Triton's interpreter, on the CPU: ``TRITON_INTERPRET=1 pytest -m interpreter``.

The default suite runs this folder in processes of their own (test_triton.py), because the variable
must be set before the kernels are imported, and must not be where they are compiled.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


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
