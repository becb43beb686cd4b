"""The sweep of ablations beside TransformerLens: no ratio without equal numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("ablation_bench", PLACE / "ablation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sweep_with_hooks_gives_our_numbers(bench):
    found = bench.compare(2, rounds=1)
    assert found["difference"] <= bench.TOLERANCE * found["largest_effect"]
    assert found["largest_effect"] > 1
    assert set(found["timing"]["median_ms"]) == {"headscope", "TransformerLens"}


def test_nothing_is_reported_where_the_numbers_differ(bench, monkeypatch):
    monkeypatch.setattr(bench, "bridge_of", lambda model: None)
    monkeypatch.setattr(
        bench, "hooked", lambda bridge, model, task, means: bench.ablation.ablate_each_head(
            model, task, bench.METRIC, means * 1.01
        ),
    )  # fmt: skip
    monkeypatch.setattr(bench, "interleave", lambda *given: pytest.fail("it was timed"))
    with pytest.raises(SystemExit, match="nothing is reported"):
        bench.compare(2, rounds=1)


def test_committed_results_are_of_equal_numbers_and_faster(bench):
    files = sorted((PLACE / "results").glob("ablation-*.json"))
    assert files
    for file in files:
        for sweep in json.loads(file.read_text(encoding="utf-8"))["sweeps"]:
            assert sweep["difference"] <= bench.TOLERANCE * sweep["largest_effect"]
            assert sweep["timing"]["ratio"]["TransformerLens"] > 1
