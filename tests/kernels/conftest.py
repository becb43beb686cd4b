"""Fixtures of the kernel tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attention_inputs import Inputs, check_agreement


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def draw() -> type[Inputs]:
    return Inputs


@pytest.fixture(scope="session")
def agree() -> Any:
    return check_agreement
