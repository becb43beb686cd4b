"""The Triton kernels without a GPU: in the interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.seed("F4")
@pytest.mark.parametrize("path", sorted((HERE / "interpreted").glob("test_*.py")), ids=lambda p: p.stem)
def test_kernels_in_the_interpreter(path: Path) -> None:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-m", "interpreter", str(path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
