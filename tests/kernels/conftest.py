"""Fixtures of the kernel tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attention_inputs import Inputs, check_agreement


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def draw() -> type[Inputs]:
    return Inputs


@pytest.fixture(scope="session")
def agree() -> Any:
    return check_agreement
