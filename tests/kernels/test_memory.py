"""Capture needs memory linear in the text: no N×N tensor, no growth beyond its results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from torch.profiler import ProfilerActivity, profile

from headscope.kernels import statistics
from headscope.kernels.api import (
    AttentionSpec,
    Request,
    attend,
    attend_dense,
    attend_differentiable,
    capture_gradient,
)
from headscope.kernels.gradients.attributions import STATISTICS
from headscope.kernels.gradients.backward import differentiate
from headscope.kernels.panels import scratch
from headscope.kernels.panels.engine import PanelEngine
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.panels.scratch import Scratch


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the memory of workers from torch, where a watch sees it."""

    def take(self: Scratch, name: str, count: int) -> torch.Tensor:
        self._pieces.pop(name, None)
        piece = self._pieces[name] = torch.empty(count, dtype=torch.uint8)
        return piece

    monkeypatch.setattr(Scratch, "take", take)


def spans(length: int) -> torch.Tensor:
    return torch.arange(length)[None] // 300


def tensors(length: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, length, 8, generator=draw) for _ in range(3))


def call(length: int, dense: bool = False, **options: Any) -> None:
    q, k, v = tensors(length)
    request = Request(
        stats=tuple(name for name in statistics.names() if name != "pattern"),
        targets=torch.zeros(1, 1, length, 1, dtype=torch.long),
        spans=spans(length),
        tile=length // 64,
    )
    (attend_dense if dense else attend)(q, k, v, request, AttentionSpec(**options))


@pytest.fixture
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", 1 << 12)


@pytest.mark.requirement("F1")
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("options", [{}, {"window": 64}, {"causal": False}], ids=str)
def test_no_tensor_of_queries_by_keys(options):
    largest = []
    for length in (1024, 2048):
        with LargestTensor() as mode:
            call(length, **options)
        # The three buffers of one panel: 256 queries against every key.
        assert mode.elements <= 3 * 256 * length
        largest.append(mode.elements)
    assert largest[1] <= 2.1 * largest[0]


def differentiated(length: int, **options: Any) -> None:
    """Take every gradient, without the operator, inside which the watch sees nothing."""
    q, k, v = tensors(length)
    request = Request(stats=("z", "lse", "entropy", "span_mass"), spans=spans(length))
    panels = Panels(q, k, v, AttentionSpec(**options).fit(q, k), request)
    results = PanelEngine(panels).run([statistics.load(name) for name in request.stats])
    differentiate(panels, results, results)


def attributed(length: int, **options: Any) -> None:
    q, k, v = tensors(length)
    request = Request(stats=tuple(STATISTICS), tile=length // 64)
    capture_gradient(q, k, v, v, request, AttentionSpec(**options))


@pytest.mark.parametrize(
    "options", [{}, {"window": 64}, {"causal": False}, {"softcap": 3.0}], ids=str
)
@pytest.mark.parametrize("work", [differentiated, attributed])
@pytest.mark.usefixtures("small_panels")
def test_no_such_tensor_for_gradients(work, options):
    for length in (1024, 2048):
        with LargestTensor() as mode:
            work(length, **options)
        assert 128 * 64 <= mode.elements <= 3 * 256 * length


def test_the_watch_notices_a_whole_matrix():
    with LargestTensor() as mode:
        call(256, dense=True)
    assert mode.elements >= 256 * 256


def peak_bytes(work: Callable[[int], None], length: int, folder: Path) -> int:
    """Profile one call and add up what is allocated and freed."""
    scratch._idle.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(length)
    trace = folder / f"{length}.json"
    profiled.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def forth_and_back(length: int, **options: Any) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in tensors(length))
    request = Request(stats=("entropy", "span_mass"), spans=spans(length))
    results = attend_differentiable(q, k, v, request, AttentionSpec(**options))
    sum(result.square().sum() for result in results.values()).backward()


def fused_forth_and_back(length: int) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in tensors(length))
    attend_differentiable(q, k[:, :1], v[:, :1])["z"].square().sum().backward()


def strided_forth_and_back(length: int) -> None:
    q, k, v = (tensor.mT.contiguous().mT.requires_grad_() for tensor in tensors(length))
    attend_differentiable(q, k, v)["z"].square().sum().backward()


@pytest.mark.requirement("F1")
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("work", [call, forth_and_back, strided_forth_and_back, attributed])
def test_peak_memory_grows_linearly(work, tmp_path):
    short, long = (peak_bytes(work, length, tmp_path) for length in (1024, 2048))
    assert short > 3 * 128 * 1024 * 4, "the profile saw less than the panels"
    assert long <= 2.1 * short


def test_fused_attention_grows_linearly_too(tmp_path):
    short, long = (peak_bytes(fused_forth_and_back, length, tmp_path) for length in (1024, 4096))
    assert long <= 4.2 * short
