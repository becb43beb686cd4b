"""The constructed models, importable by name and built once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# The folder of the tests is never on the path: its kernels/ would hide Hugging Face's package.
_spec = importlib.util.spec_from_file_location(
    "constructed", Path(__file__).parents[1] / "constructed.py"
)
assert _spec is not None
assert _spec.loader is not None
constructed = sys.modules.setdefault("constructed", importlib.util.module_from_spec(_spec))
if not hasattr(constructed, "circuit"):
    _spec.loader.exec_module(constructed)


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
