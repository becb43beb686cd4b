"""What the benchmarks share. headscope may be installed, or only lie beside this folder."""

import importlib.util
import sys
import types
from pathlib import Path

if importlib.util.find_spec("headscope") is None:
    # The folders at the root are the parts of one namespace package.
    package = types.ModuleType("headscope")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["headscope"] = package
