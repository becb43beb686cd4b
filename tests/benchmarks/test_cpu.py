"""The benchmark of a CPU: the whole schema of a tiny case, and no times of wrong numbers."""

import json
import re
import sys
from typing import Any

import pytest
import torch
from refusals import check_message, check_refusal

from headscope.kernels import attention
from headscope.kernels.api import memory
from headscope_benchmarks import baselines, cpu_rows, machine, runner
from headscope_benchmarks.shapes import cpu_shape, cumulative
from headscope_benchmarks.tables import tables
from headscope_benchmarks.targets import judge_cpu
from headscope_benchmarks.timing import interleave


def check_schema(result: dict[str, Any], lengths: list[int]) -> None:
    assert {"cpu", "cores", "torch", "torch_threads", "load_before"} <= set(result["machine"])
    every = {*baselines.ATTENTION, *baselines.FLEX}
    checked = {(row["contender"], row["output"]) for row in result["gate"]}
    for engine in baselines.ENGINES:
        for output in ("z", *cumulative("top8")):
            assert (f"{engine}/top8", output) in checked
    assert {name for name, _ in checked} >= {"sdpa", *baselines.OTHERS, "capture"}
    assert all(row["error"] <= row["allowed"] for row in result["gate"])
    assert sorted({row["length"] for row in result["attention"]}) == lengths
    for row in result["attention"]:
        assert set(row["median_ms"]) | set(row["not_run"]) == every
        for name, ratio in row["ratio"].items():
            low, high = row["spread_ms"][name]
            assert low <= row["median_ms"][name] <= high
            apart = row.get("apart", {"names": []})
            base = apart["ratio_to_ms"] if name in apart["names"] else row["median_ms"]["sdpa"]
            assert ratio == pytest.approx(row["median_ms"][name] / base, rel=0.02, abs=0.001)
    for row in result["model"]:
        assert set(baselines.MODEL) <= set(row["median_ms"]) | set(row["not_run"])
    assert [row["length"] for row in result["model"]] == lengths
    assert [row["length"] for row in result["memory"]] == lengths
    for row in result["memory"]:
        names = set(row["extra_bytes"]) | set(row["not_run"])
        assert names == {*cpu_rows.WEIGHED, *baselines.MODEL}
    rows = (result["gate"], result["attention"], result["memory"])
    assert result["bars"] == judge_cpu(*rows, matrix_unit=result["setup"]["matrix_unit"])


@pytest.mark.long
def test_tiny_run_has_the_schema_and_can_be_laid_out():
    threads = torch.get_num_threads()
    result = json.loads(json.dumps(runner.run_cpu((256,), heads=2, rounds=2)))
    check_schema(result, [256])
    assert torch.get_num_threads() == threads
    # Too short for the targets of time: nothing may be claimed.
    assert {bar["bar"]: bar["met"] for bar in result["bars"]}["all but top-8"] is None
    for table in tables(result):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    if sys.platform == "linux":
        sizes = result["memory"][0]
        # Two heads of a 256×256 matrix in float32, scores and weights.
        assert sizes["extra_bytes"]["eager"] >= 2 * 2 * 256 * 256 * 4
        assert sizes["output_bytes"]["sdpa"] == 2 * 256 * 64 * 4
        assert sizes["output_bytes"]["bridge"] == 2 * 256 * (64 + 256) * 4


def test_wrong_numbers_are_not_measured(monkeypatch):
    right = attention.attend

    def wrong(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        result = right(*arguments, **options)
        return {name: values + 1e-4 * (name == "entropy") for name, values in result.items()}

    monkeypatch.setattr(attention, "attend", wrong)
    monkeypatch.setattr(cpu_rows, "measure_times", lambda *arguments: pytest.fail("measured"))
    check_message("gate: entropy of headscope/top8", runner.run_cpu, (128,), heads=2, rounds=1)


def test_baselines_that_cannot_fit_are_named():
    fitting, absent = cpu_rows.fitting("attention", 1 << 20, 12)
    assert fitting == ["sdpa", *baselines.CAPTURES]
    assert all("GB" in reason for reason in absent.values())


def test_a_baseline_that_cannot_be_compiled_is_named(monkeypatch):
    def broken(*given: Any, **options: Any) -> Any:
        raise NotImplementedError("not on this machine\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    check_refusal("NotImplementedError", baselines.attention_call, "flex_aux", 64, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_stays_compiled_beside_one_that_cannot_be():
    length, heads = 2048, 12
    calls, _ = baselines.prepare(baselines.FLEX, *cpu_shape(length, heads).inputs())
    memory.reset_peak()
    before = memory.resident()
    calls["flex"]()
    # One matrix of every head would be 200 MB.
    assert memory.peak() - before < heads * length**2 * 4 / 2


def test_calls_take_turns_and_the_warm_ones_do_not_count():
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


def test_targets_take_the_worst_case_of_long_texts():
    slow = {"headscope/histogram": 9.0}
    attention = [
        row(1024, 1, **slow),
        row(4096, 1, bridge=20.0, **{"headscope/histogram": 1.1, "headscope/top8": 1.5}),
        row(4096, 2, bridge=12.0, **{"headscope/histogram": 1.3, "headscope/top8": 2.5}),
    ]
    output = {"headscope/histogram": 20, "bridge": 1, "sdpa": 1}
    memory = []
    for length, own in ((4096, 60), (8192, 240)):
        extra = {"headscope/histogram": own, "bridge": 100 * own, "sdpa": 1}
        sizes = {"extra_bytes": extra, "output_bytes": output}
        memory.append({"length": length, "threads": 2, **sizes})
    gate = [
        {"contender": name, "output": "entropy", "logit_deviation": 64.0, "error": error}
        for name, error in (("headscope/top8", 2e-6), ("eager_statistics", 1e-2))
    ]
    plain = judge_cpu(gate, attention, memory, matrix_unit=False)
    assert {bar["bar"]: bar for bar in plain}["bridge, time"]["met"] is True
    judged = {bar["bar"]: bar for bar in judge_cpu(gate, attention, memory, matrix_unit=True)}
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


def test_committed_results_have_the_schema_and_no_paths():
    files = sorted(machine.RESULTS.glob("cpu-*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        check_schema(result, sorted({row["length"] for row in result["attention"]}))
        assert file.stem == machine.slug(result["machine"])
        assert not re.search(r'"/|host', file.read_text())
