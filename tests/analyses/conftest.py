"""The constructed models, built once."""

import constructed
import pytest

from headscope.analyses._runtime.progress import reporting


@pytest.fixture(scope="session")
def circuit():
    return constructed.circuit()


@pytest.fixture(scope="session")
def rotary_sink():
    return constructed.rotary_sink()


@pytest.fixture(scope="session")
def random_llama():
    return constructed.random_llama()


@pytest.fixture
def progress():
    """What the analyses of a test report of their steps."""
    calls = []
    with reporting(lambda *step: calls.append(step)):
        yield calls
