"""The benchmark of a graphics processor: everything of it that needs none."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import check_message

from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope_benchmarks import baselines, gpu_rows, roofline, shapes, triton_passes
from headscope_benchmarks.baselines import GPU, GPU_CAPTURES
from headscope_benchmarks.shapes import Shape, eager_shape
from headscope_benchmarks.tables import tables
from headscope_benchmarks.targets import faster_forward, judge_gpu

ROOT = Path(__file__).parents[2]
SMALL = Shape(length=96, batch=2, heads=4, kv_heads=2, size=64)
H200 = {"capability": [9, 0], "multiprocessors": 132, "gpu_memory_gb": 141.0}


def stand_in(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    """Make what a processor can of each contender: the panels for ours, torch's for the others."""
    if name in GPU_CAPTURES:
        column = name.rpartition("/")[2]
        return baselines.make(f"panels/{column}", q, k, v)
    if name in ("sdpa", "eager"):
        return baselines.make(name, q, k, v)
    raise InvalidInput(f"{name}: not on a processor")


def test_eager_attention_gets_a_batch_that_fits():
    long = Shape(8192, 16, 32, 32, 128)
    smaller = eager_shape(long, memory=140 * 10**9)
    assert smaller
    assert smaller.batch * 4 * 2 * 32 * 8192**2 <= 0.6 * 140 * 10**9
    assert eager_shape(Shape(16384, 8, 32, 32, 128), memory=140 * 10**9) is None
    assert eager_shape(long, memory=10**9) is None


def test_ceilings_follow_the_busiest_unit():
    rates = roofline.RATES[9, 0]
    wide, narrow = (Shape(131072, 1, 32, 32, size) for size in (128, 64))
    least = roofline.milliseconds(wide, roofline.FORWARD, rates, 132)
    half = roofline.milliseconds(narrow, roofline.FORWARD, rates, 132)
    # Heads of 64 keep tensor cores and exponential units equally busy; of 128 the tensor cores.
    assert least == pytest.approx(2 * half)
    assert roofline.milliseconds(narrow, roofline.SECOND, rates, 132) == half
    peak = 132 * rates.tensor * rates.clock / 1e12
    assert roofline.teraflops(wide, least) == pytest.approx(peak)
    assert roofline.scores(Shape(5, 2, 3, 3, 64)) == 2 * 3 * sum(range(6))


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return gpu_rows.measure(SMALL, "cpu", H200, rounds=1, peak=lambda call: 7, maker=stand_in)


def test_a_row_has_every_contender_or_the_reason_why_not(measured):
    assert set(measured["median_ms"]) | set(measured["not_run"]) == set(GPU)
    assert measured["not_run"]["sdpa_cudnn"] == "sdpa_cudnn: not on a processor"
    assert measured["z_bytes"] == 4 * 2 * 4 * 96 * 64
    assert measured["eager"]["ratio"]["sdpa"] == 1.0
    assert measured["ceiling_ms"]["forward"] > 0
    for name, rate in measured["teraflops"].items():
        operations = 4 * 64 * 2 * 4 * 96 * 97 / 2
        expected = operations / (measured["median_ms"][name] / 1e3) / 1e12
        assert rate == pytest.approx(expected, abs=0.06, rel=0.01)


@pytest.mark.long
def test_the_gate_passes_right_numbers_and_stops_at_wrong_ones():
    rows = gpu_rows.check("cpu", stand_in)
    assert {row["contender"] for row in rows} == {*GPU_CAPTURES, "sdpa", "eager"}
    assert {row["size"] for row in rows} == {64, 128}

    def wrong(name: str, *tensors: torch.Tensor) -> Any:
        call = stand_in(name, *tensors)
        if name != "triton/columns":
            return call
        return lambda: {out: each + 1e-3 * (out == "received") for out, each in call().items()}

    check_message("gate: received of triton/columns", gpu_rows.check, "cpu", wrong)


def test_a_capture_that_cannot_run_is_not_left_out_of_the_gate():
    def missing(name: str, *tensors: torch.Tensor) -> Any:
        raise InvalidInput(f"{name}: no such kernel")

    check_message("triton/rows: no such kernel", gpu_rows.check, "cpu", missing)


def test_wrong_outputs_at_the_measured_shape_stop_the_benchmark():
    def wrong(name: str, *tensors: torch.Tensor) -> Any:
        call = stand_in(name, *tensors)
        if name != "triton/top8":
            return call

        def last_head_is_off() -> dict[str, torch.Tensor]:
            result = call()
            result["z"][-1, -1] *= 1.1
            return result

        return last_head_is_off

    with pytest.raises(HeadscopeError, match=r"gate: z of triton/top8 .* at 96 tokens"):
        gpu_rows.measure(SMALL, "cpu", H200, rounds=1, peak=lambda call: 0, maker=wrong)


def row(length: int, size: int, extra: float, batch: int = 1, **times: float) -> dict[str, Any]:
    shape = {"length": length, "batch": batch, "heads": 32, "kv_heads": 8, "size": size}
    ratio = {name: each / times["sdpa"] for name, each in times.items()}
    memory = {"extra_bytes": {"triton/top8": extra}, "z_bytes": 2e9}
    return {**shape, **memory, "median_ms": times, "ratio": ratio}


LONG = (
    row(4096, 128, 99e9, batch=32, **{"sdpa": 1.0, "triton/top8": 5.0}),
    row(
        8192, 128, 99e9, batch=16,
        **{"sdpa": 2.0, "triton/top8": 2.2, "forward": 1.0, "forward_rows": 1.1,
           "fused/top8": 3.0, "stock/top8": 2.0},
    ),
    row(
        131072, 128, 9e9,
        **{"sdpa": 2.0, "triton/top8": 2.6, "forward": 1.0, "forward_rows": 1.02,
           "fused/top8": 3.0, "stock/top8": 3.5},
    ),
    row(
        131072, 64, 99e9,
        **{"sdpa": 1.0, "triton/top8": 9.0, "fused/top8": 1.0, "stock/top8": 2.0},
    ),
)  # fmt: skip


def test_targets_of_the_device():
    judged = {bar["bar"]: bar for bar in judge_gpu(LONG)}
    rows = judged["forward with rows"]
    assert (rows["measured"], rows["met"], rows["aim_met"]) == (1.1, True, False)
    everything = judged["all statistics"]
    assert (everything["measured"], everything["met"]) == (pytest.approx(1.3), False)
    assert (judged["131072 tokens"]["measured"], judged["131072 tokens"]["met"]) == (7.0, True)
    assert [bar["met"] for bar in judge_gpu([])] == [None] * 3


def test_the_planner_takes_what_was_faster_in_all():
    assert faster_forward(LONG) == {"128": "stock", "64": "fused"}
    assert faster_forward(LONG[:1]) == {}


def test_the_result_can_be_laid_out_and_written(measured):
    setup = {"tokens": 192, "columns": shapes.COLUMNS}
    result = {"machine": {"gpu": "NVIDIA H200"}, "setup": setup}
    result |= {"rows": [measured], "bars": judge_gpu([measured])}
    stock, captures, targets = tables(json.loads(json.dumps(result)))
    for table in (stock, captures, targets):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert "FlashAttention" in stock.columns


def test_without_a_device_it_reports_it_and_writes_nothing(tmp_path):
    # As on a bare machine: torch and Triton, no terminal library, no model library, not installed.
    program = (
        "import os, runpy, sys\n"
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "for name in ('rich', 'typer', 'transformers', 'xarray', 'transformer_lens'):\n"
        "    sys.modules[name] = None\n"
        "sys.meta_path = [each for each in sys.meta_path if 'editable' not in repr(each)]\n"
        "sys.path = [each for each in sys.path if 'editable' not in each]\n"
        f"sys.argv = ['gpu.py', '--out', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'gpu.py')!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-P", "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch("error: device: .*no CUDA device.*\n", done.stderr)
    assert not list(tmp_path.iterdir())


INTERPRETED = f"""
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from headscope_benchmarks import baselines, gpu_rows, shapes, triton_passes
gpu_rows.GATE, gpu_rows.GATE_SIGMAS = (shapes.Shape(64, 1, 2, 1, 64),), (1.0,)
gpu_rows.GPU_CAPTURES = ("triton/top8",)
gpu_rows.GPU = (*triton_passes.FORWARD, *triton_passes.PLANS, "triton/top8")
print(sorted({{row["contender"] for row in gpu_rows.check("cpu")}}))
q, k, v = gpu_rows.GATE[0].inputs("cpu", torch.bfloat16)
print(sorted(baselines.make("second/columns", q, k, v)()))
"""


@pytest.mark.long
def test_our_passes_are_called_as_they_want_to_be():
    command = [sys.executable, "-P", "-W", "ignore", "-c", INTERPRETED]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checked, second = done.stdout.splitlines()
    ours = {*triton_passes.FORWARD, *triton_passes.PLANS, "triton/top8", "eager"}
    assert checked == str(sorted(ours))
    assert second == "['pooled_mean', 'received']"
