"""Tests for a machine with a GPU: ``make test-gpu``.

They import torch, triton and pytest, and of headscope only its kernels, which need jaxtyping. On a
machine with nothing else: ``pytest -m gpu --confcutdir=tests/gpu tests/gpu``.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True, scope="session")
def device() -> torch.device:
    assert torch.cuda.is_available(), "these tests need a GPU"
    return torch.device("cuda")
