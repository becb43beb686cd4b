"""The one-file recipes of CONTRIBUTING.md do what they say: each is dropped in and used."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr

from headscope import analyses, viz
from headscope.analyses import pattern_shape
from headscope.analyses._runtime.runner import execute
from headscope.kernels import statistics
from headscope.probes import capture

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
FOLDERS = {"pattern_shape": pattern_shape, "statistics": statistics, "viz": viz}


def recipe(path: str) -> str:
    """The code block that follows the mention of a file."""
    result = re.search(re.escape(f"`{path}`") + r".*?```python\n(.*?)```", TEXT, re.DOTALL)
    assert result, path
    return result.group(1)


@pytest.fixture
def drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Put a recipe into a registry's folder, without touching the repository."""
    added: list[str] = []

    def add(path: str) -> str:
        folder, stem = Path(path).parent.name, Path(path).stem
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{stem}.py").write_text(recipe(path))
        package: ModuleType = FOLDERS[folder]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
        # The registry of analyses reads the families of its own path.
        monkeypatch.setattr(analyses, "__path__", [*analyses.__path__, str(tmp_path)])
        importlib.invalidate_caches()
        added.append(f"{package.__name__}.{stem}")
        return stem

    yield add
    for name in added:
        sys.modules.pop(name, None)
        parent, _, stem = name.rpartition(".")
        if hasattr(sys.modules[parent], stem):
            delattr(sys.modules[parent], stem)
    statistics.load.cache_clear()


def test_analysis_recipe(drop_in, bundled):
    name = drop_in("analyses/pattern_shape/flatness.py")
    assert name in analyses.names()
    result = execute(name, bundled, [bundled.encode("the")[:1] * 6], options={"skip": "2"})
    # One repeated token: equal keys up to their rotation, so no head is far from flat or above it.
    flatness = result["flatness"]
    assert viz.choose(flatness).__name__.endswith("grid")
    assert float(flatness.max()) <= 1 + 1e-6
    assert result.attrs["title"].startswith("Flatness")


def test_statistic_recipe(drop_in, bundled):
    name = drop_in("kernels/statistics/mean_position.py")
    assert name in statistics.names()
    ids = list(range(3, 25))
    result = capture(bundled, [ids], stats=(name, "pattern"))
    weights = result["pattern"].values.astype(np.float64)
    np.testing.assert_allclose(result[name].values, weights @ np.arange(len(ids)), atol=1e-4)
    assert result[name].attrs["units"] == "tokens"


def test_view_recipe(drop_in):
    name = drop_in("viz/spread.py")
    assert name in viz.names()
    array = xr.DataArray([1.0, 2.0, 2.0], dims=("sample",), attrs={"units": "nats"})
    assert viz.choose(array).__name__.endswith(name)
    assert viz.choose(array).figure(array).data[0].type == "histogram"
