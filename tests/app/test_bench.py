"""The benchmark: measures a tiny case with the whole schema, and refuses wrong numbers."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.app import cli
from headscope.app.bench import contenders, cpu, layers, machine
from headscope.app.bench.clock import interleave
from headscope.app.bench.cpu_bars import judge
from headscope.kernels import attention, memory
from headscope.kernels.errors import HeadscopeError

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
        if "entropy" in result:
            result["entropy"] = result["entropy"] + 1e-4
        return result

    monkeypatch.setattr(attention, "attend", wrong)


def check_schema(result: dict[str, Any], lengths: list[int]) -> None:
    assert {"cpu", "cores", "torch", "torch_threads", "load_before"} <= set(result["machine"])
    every = {*contenders.ATTENTION, *contenders.FLEX}
    checked = {(row["contender"], row["output"]) for row in result["gate"]}
    for engine in contenders.ENGINES:
        for output in ("z", *contenders.cumulated("top8")):
            assert (f"{engine}/top8", output) in checked
    assert {name for name, _ in checked} >= {"sdpa", *contenders.OTHERS, "capture"}
    assert all(row["error"] <= row["allowed"] for row in result["gate"])
    assert sorted({row["length"] for row in result["attention"]}) == lengths
    for row in result["attention"]:
        assert set(row["median_ms"]) | set(row["not_run"]) == every
        for name, ratio in row["ratio"].items():
            low, high = row["spread_ms"][name]
            assert low <= row["median_ms"][name] <= high
            apart = row.get("apart", {"names": []})
            base = apart["ratio_to_ms"] if name in apart["names"] else row["median_ms"]["sdpa"]
            expected = row["median_ms"][name] / base
            assert ratio == pytest.approx(expected, rel=0.02, abs=0.001)
    for row in result["model"]:
        assert set(layers.MODEL) <= set(row["median_ms"]) | set(row["not_run"])
    assert [row["length"] for row in result["model"]] == lengths
    assert [row["length"] for row in result["memory"]] == lengths
    for row in result["memory"]:
        names = set(row["extra_bytes"]) | set(row["not_run"])
        assert names == {*cpu.WEIGHED, *layers.MODEL}
    assert result["bars"] == judge(result["gate"], result["attention"], result["memory"])


def test_tiny_run_has_the_schema_and_prints_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "result.json"
    assert call(monkeypatch, *TINY, "--out", file) == 0
    shown = capsys.readouterr().out
    assert "headscope" in shown.lower()
    assert "×" in shown
    result = json.loads(file.read_text())
    check_schema(result, [256])
    assert list(tmp_path.iterdir()) == [file]
    assert torch.get_num_threads() == threads
    # Too short for the bars of time: nothing may be claimed.
    assert {bar["bar"]: bar["met"] for bar in result["bars"]}["all but top-8"] is None
    if sys.platform == "linux":
        memory = result["memory"][0]
        # Two heads of a 256×256 matrix in float32, scores and weights.
        assert memory["extra_bytes"]["eager"] >= 2 * 2 * 256 * 256 * 4
        assert memory["output_bytes"]["sdpa"] == 2 * 256 * 64 * 4
        assert memory["output_bytes"]["bridge"] == 2 * 256 * (64 + 256) * 4


def test_wrong_numbers_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    perturbed: None,
) -> None:
    monkeypatch.setattr(cpu, "_time", lambda *given: pytest.fail("measured"))
    with pytest.raises(HeadscopeError, match="gate: entropy of headscope/top8"):
        cpu.run((128,), heads=2, rounds=1)
    assert call(monkeypatch, *TINY, "--out", tmp_path / "result.json") == 2
    assert "gate" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_contenders_that_cannot_fit_are_named() -> None:
    fitting, absent = cpu._fitting("attention", 1 << 20, 12)
    assert fitting == ["sdpa", *contenders.CAPTURES]
    assert all("GB" in reason for reason in absent.values())


def test_a_contender_that_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        raise NotImplementedError("not on this machine\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    with pytest.raises(HeadscopeError, match=r"^NotImplementedError: not on this machine$"):
        contenders.attention_call("flex_aux", 64, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_stays_compiled_beside_one_that_cannot_be() -> None:
    length, heads = 2048, 12
    calls = {}
    for name in contenders.FLEX:
        with contextlib.suppress(HeadscopeError):
            calls[name] = contenders.attention_call(name, length, heads)
    memory.forget_peak()
    before = memory.resident()
    calls["flex"]()
    # One matrix of every head would be 200 MB.
    assert memory.peak() - before < heads * length**2 * 4 / 2


@pytest.mark.parametrize("length", [1, 63, 256])
def test_every_statistic_from_the_whole_matrix_is_that_of_the_engine(length: int) -> None:
    q, k, v = contenders.attention_inputs(length, 2)
    ours = contenders.make("panels/top8", q, k, v)()
    whole = contenders.make("eager_statistics", q, k, v)()
    assert set(ours) == set(whole)
    for name, values in ours.items():
        shown = values[..., : whole[name].shape[-1]]
        torch.testing.assert_close(shown, whole[name].to(values.dtype), equal_nan=True)


def test_the_bridge_alone_attends_to_what_it_is_given() -> None:
    q, k, v = contenders.attention_inputs(40, 3)
    found = layers.bridge_attention(q, k, v)()
    hidden = torch.ones(40, 40).triu(1).bool()
    scores = (q.double() @ k.double().mT / 8).masked_fill(hidden, -torch.inf)
    expected = torch.softmax(scores, dim=-1)
    torch.testing.assert_close(found["pattern"].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["z"].double(), expected @ v.double(), atol=1e-5, rtol=0)


def test_calls_take_turns_and_the_warm_ones_do_not_count() -> None:
    order: list[str] = []
    times = iter([9.0, 9.0, 1.0, 4.0, 2.0, 6.0, 3.0, 5.0])

    def timer(call: Any) -> float:
        call()
        return next(times)

    calls = {"base": lambda: order.append("base"), "other": lambda: order.append("other")}
    timed = interleave(calls, rounds=3, timer=timer)
    assert order == ["base", "other"] * 4
    assert timed["median_ms"] == {"base": 2.0, "other": 5.0}
    assert timed["ratio"]["other"] == 2.5
    assert timed["spread_ms"]["other"] == [4.0, 6.0]


def row(length: int, threads: int, **times: float) -> dict[str, Any]:
    return {"length": length, "threads": threads, "median_ms": times, "ratio": times}


def test_bars_take_the_worst_case_of_long_texts() -> None:
    slow = {"headscope/histogram": 9.0}
    attention = [
        row(1024, 1, **slow),
        row(4096, 1, bridge=20.0, **{"headscope/histogram": 1.1, "headscope/top8": 1.5}),
        row(4096, 2, bridge=12.0, **{"headscope/histogram": 1.3, "headscope/top8": 2.5}),
    ]
    memory = [
        {
            "length": length,
            "threads": 2,
            "extra_bytes": {"headscope/histogram": extra, "bridge": 100 * extra, "sdpa": 1},
            "output_bytes": {"headscope/histogram": 20, "bridge": 1, "sdpa": 1},
        }
        for length, extra in ((4096, 60), (8192, 240))
    ]
    gate = [
        {"contender": name, "output": "entropy", "logit_deviation": 64.0, "error": error}
        for name, error in (("headscope/top8", 2e-6), ("eager_statistics", 1e-2))
    ]
    judged = {bar["bar"]: bar for bar in judge(gate, attention, memory)}
    speed = judged["all but top-8"]
    assert (speed["measured"], speed["met"], speed["aim_met"]) == (1.3, True, False)
    assert speed["worst_at"] == "4096 tokens, 2 threads"
    assert judged["with top-8"]["met"] is False
    assert judged["torch only"]["met"] is None
    assert judged["bridge, time"]["measured"] == pytest.approx(12.0 / 1.3, abs=1e-3)
    assert judged["bridge, time"]["met"] is False
    assert judged["bridge, memory"]["met"] is True
    assert (judged["memory"]["measured"], judged["memory"]["met"]) == (12.0, False)
    # Four times the memory at twice the length is a map.
    assert (judged["memory, growth"]["measured"], judged["memory, growth"]["met"]) == (2.0, False)
    assert judged["float64, entropy"]["measured"] == 2e-6


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
        assert file.stem == machine.slug(result["machine"])
        assert not re.search(r'"/|host', file.read_text())
