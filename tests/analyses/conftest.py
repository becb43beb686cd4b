"""The constructed models, built once."""

import constructed
import pytest


@pytest.fixture(scope="session")
def circuit():
    return constructed.circuit()


@pytest.fixture(scope="session")
def rotary_sink():
    return constructed.rotary_sink()


@pytest.fixture(scope="session")
def random_llama():
    return constructed.random_llama()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Many tiny operations: with more threads than free cores they wait for each other.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
