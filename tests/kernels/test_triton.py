"""The Triton kernels without a GPU: in the interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("test_*.py")))
@pytest.mark.long
def test_kernels_in_the_interpreter(name):
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "interpreter", FOLDER / name]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    options = {"cwd": FOLDER.parents[2], "capture_output": True, "text": True}
    done = subprocess.run(command, env=environment, **options)
    assert done.returncode == 0, done.stdout[-4000:]
