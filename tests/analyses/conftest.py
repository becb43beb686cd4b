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
