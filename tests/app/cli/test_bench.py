"""`headscope bench`: ratios of this machine, and none of wrong numbers."""

import json
from typing import Any

import pytest
import torch

from headscope.app.cli import bench
from headscope.kernels import api

TINY = ("--length", "128", "--heads", "2", "--rounds", "2")


def test_ratios_are_printed_and_kept(headscope, tmp_path):
    file = tmp_path / "result.json"
    shown = headscope("bench", *TINY, "--length", 64, "--out", file).printed()
    assert "SDPA" in shown
    assert "benchmarks/cpu.py" in shown
    result = json.loads(file.read_text())
    assert [row["length"] for row in result["rows"]] == [64, 128]
    for row in result["rows"]:
        times = row["median_ms"]
        assert tuple(times) == bench.CALLS
        for name in bench.CALLS[1:]:
            assert f"{times[name] / times['SDPA']:.2f}×" in shown


@pytest.mark.parametrize("output", ["entropy", "topk"])
def test_wrong_numbers_are_not_measured(headscope, monkeypatch, tmp_path, output):
    right = api.attend

    def wrong(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        result = right(*arguments, **options)
        return {name: values + 1e-4 * (name == output) for name, values in result.items()}

    monkeypatch.setattr(api, "attend", wrong)
    monkeypatch.setattr(bench, "_time", lambda *arguments: pytest.fail("measured"))
    line = headscope("bench", *TINY, "--out", tmp_path / "result.json").refusal()
    assert line.startswith(f"error: {output}: headscope")
    assert not list(tmp_path.iterdir())


def test_eager_attention_is_left_out_where_it_cannot_fit(monkeypatch):
    monkeypatch.setattr(api.memory, "available", lambda: 10**6)
    assert tuple(bench._prepare(512, 2)[0]) == bench.CALLS[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--out", "no/result.json"), "--out"), (("--flex",), "benchmarks/cpu.py")],
)
def test_what_cannot_be_done_is_refused_before_the_minute(headscope, arguments, message):
    assert message in headscope("bench", *arguments).refusal()
