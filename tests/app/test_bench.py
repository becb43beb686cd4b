"""The benchmark: measures a tiny case with the whole schema, and refuses wrong numbers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.app import bench, cli, contenders
from headscope.kernels import attention
from headscope.kernels.refusal import Refused

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TINY = ("--length", "256", "--heads", "2", "--rounds", "2")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["headscope", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def perturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.attend

    def wrong(*given: Any, **options: Any) -> dict[str, torch.Tensor]:
        result = right(*given, **options)
        result["entropy"] = result["entropy"] + 1e-4
        return result

    monkeypatch.setattr(attention, "attend", wrong)


def check_schema(result: dict[str, Any], lengths: list[int]) -> None:
    assert {"cpu", "cores", "torch", "torch_threads", "load_before"} <= set(result["machine"])
    assert {row["contender"] for row in result["gate"]} >= {"headscope", "eager", "sdpa", "capture"}
    checked = {row["output"] for row in result["gate"] if row["contender"] == "headscope"}
    assert checked == {"z", *contenders.STATS}
    assert all(row["error"] <= row["allowed"] for row in result["gate"])
    assert sorted({row["length"] for row in result["attention"]}) == lengths
    for row in result["attention"]:
        assert set(row["median_ms"]) | set(row["not_run"]) == set(contenders.ATTENTION)
        for name, ratio in row["ratio"].items():
            low, high = row["spread_ms"][name]
            assert low <= row["median_ms"][name] <= high
            expected = row["median_ms"][name] / row["median_ms"]["sdpa"]
            assert ratio == pytest.approx(expected, rel=0.02, abs=0.001)
    for row in result["model"]:
        assert set(row["median_ms"]) | set(row["not_run"]) == set(contenders.MODEL)
    assert [row["length"] for row in result["model"]] == lengths
    assert [row["length"] for row in result["memory"]] == lengths
    for row in result["memory"]:
        names = set(row["extra_bytes"]) | set(row["not_run"])
        assert names == {*contenders.ATTENTION, *contenders.MODEL}


def test_tiny_run_has_the_schema_and_prints_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "result.json"
    assert call(monkeypatch, *TINY, "--out", file) == 0
    shown = capsys.readouterr().out
    assert "headscope" in shown
    assert "×" in shown
    result = json.loads(file.read_text())
    check_schema(result, [256])
    assert list(tmp_path.iterdir()) == [file]
    assert torch.get_num_threads() == threads
    if sys.platform == "linux":
        extra = result["memory"][0]["extra_bytes"]
        # Two heads of a 256×256 matrix in float32, scores and weights.
        assert extra["eager"] >= 2 * 2 * 256 * 256 * 4


def test_wrong_numbers_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    perturbed: None,
) -> None:
    monkeypatch.setattr(bench, "_time", lambda *given: pytest.fail("measured"))
    with pytest.raises(Refused, match="gate: entropy of headscope"):
        bench.run((128,), heads=2, rounds=1)
    assert call(monkeypatch, *TINY, "--out", tmp_path / "result.json") == 2
    assert "gate" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_contenders_that_cannot_fit_are_named() -> None:
    fitting, absent = bench._fitting("attention", 1 << 20, 12)
    assert fitting == ["sdpa", "headscope"]
    assert all("GB" in reason for reason in absent.values())


def test_missing_folder_is_refused_before_the_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "--out", tmp_path / "no" / "result.json") == 2
    assert "--out" in capsys.readouterr().err


def test_committed_results_have_the_schema_and_no_paths() -> None:
    files = sorted(RESULTS.glob("cpu-*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        check_schema(result, sorted({row["length"] for row in result["attention"]}))
        assert file.stem == bench.slug(result["machine"])
        assert not re.search(r'"/|host', file.read_text())
