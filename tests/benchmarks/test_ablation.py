"""The sweep of ablations beside TransformerLens: no ratio without equal numbers."""

import json

import ablation as bench
import pytest
from refusals import check_message

from headscope_benchmarks import machine


def test_the_sweep_with_hooks_gives_our_numbers():
    result = bench.compare(2, rounds=1)
    assert result["difference"] <= bench.TOLERANCE * result["largest_effect"]
    assert result["largest_effect"] > 1
    assert set(result["timing"]["median_ms"]) == {"headscope", "TransformerLens"}


def test_nothing_is_reported_where_the_numbers_differ(monkeypatch):
    monkeypatch.setattr(bench, "bridge_of", lambda model: None)
    monkeypatch.setattr(
        bench, "hooked", lambda bridge, model, task, means: bench.ablation.ablate_each_head(
            model, task, bench.METRIC, means * 1.01
        ),
    )  # fmt: skip
    monkeypatch.setattr(bench, "interleave", lambda *arguments: pytest.fail("it was timed"))
    check_message("nothing is reported", bench.compare, 2, rounds=1)


def test_committed_results_are_of_equal_numbers_and_faster():
    files = sorted(machine.RESULTS.glob("ablation-*.json"))
    assert files
    for file in files:
        for sweep in json.loads(file.read_text(encoding="utf-8"))["sweeps"]:
            assert sweep["difference"] <= bench.TOLERANCE * sweep["largest_effect"]
            assert sweep["timing"]["ratio"]["TransformerLens"] > 1
