"""Capture needs memory linear in the text: no N×N tensor, no growth beyond its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headscope.kernels import statistics
from headscope.kernels.attention import attend
from headscope.kernels.dense import attend_dense
from headscope.kernels.request import Request
from headscope.kernels.variant import Variant


class LargestTensor(TorchDispatchMode):
    """Remember the largest memory that any result occupies, in elements."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.elements = max(self.elements, size)
        return result


def call(length: int, dense: bool = False, **options: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 8, generator=draw) for _ in range(3))
    request = Request(
        stats=tuple(name for name in statistics.names() if name != "pattern"),
        targets=torch.zeros(1, 1, length, 1, dtype=torch.long),
        spans=torch.arange(length)[None] // 300,
        tile=length // 64,
    )
    (attend_dense if dense else attend)(q, k, v, request, Variant(**options))


@pytest.mark.seed("F1")
@pytest.mark.parametrize("options", [{}, {"window": 64}, {"causal": False}], ids=str)
def test_no_tensor_of_queries_by_keys(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.kernels.panels.PANEL_ELEMENTS", 1 << 12)
    largest = []
    for length in (1024, 2048):
        with LargestTensor() as mode:
            call(length, **options)
        # The three buffers of one panel: 128 queries against every key.
        assert mode.elements <= 3 * 128 * length
        largest.append(mode.elements)
    assert largest[1] <= 2.1 * largest[0]


def test_the_watch_notices_a_whole_matrix() -> None:
    with LargestTensor() as mode:
        call(256, dense=True)
    assert mode.elements >= 256 * 256


def peak_bytes(length: int, folder: Path) -> int:
    """Profile one call and add up what is allocated and freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call(length)
    trace = folder / f"{length}.json"
    profiled.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@pytest.mark.seed("F1")
def test_peak_memory_grows_linearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.kernels.panels.PANEL_ELEMENTS", 1 << 12)
    short, long = peak_bytes(1024, tmp_path), peak_bytes(2048, tmp_path)
    assert short > 3 * 128 * 1024 * 4, "the profile saw less than the panels"
    assert long <= 2.1 * short
