"""Threads over parts: the same numbers bit for bit, and nothing left behind when one fails."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attention_inputs import check_same

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, attend
from headscope.kernels.panels import plan
from headscope.kernels.panels.plan import Part
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.panels.workers import run_in_threads


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Cut small panels; the threads that captured a part, with their number of torch threads."""
    monkeypatch.setattr(plan, "PANEL_ELEMENTS", 1 << 12)
    seen: set[tuple[int, int]] = set()
    fill = Panels.fill
    both = threading.Barrier(2, timeout=60)

    def watch(self: Panels, part: Part, *memory: Any) -> Iterator[Any]:
        me = (threading.get_ident(), torch.get_num_threads())
        if torch.get_num_threads() == 1 and threading.current_thread() is not main:
            if me not in seen:
                seen.add(me)
                both.wait()  # so that no worker does all the work before the other starts
        else:
            seen.add(me)
        return fill(self, part, *memory)

    main = threading.current_thread()
    monkeypatch.setattr(Panels, "fill", watch)
    return seen


@pytest.mark.parametrize("options", [{}, {"window": 20}, {"causal": False}, {"softcap": 3.0}])
def test_threads_do_not_show_in_the_numbers(options, draw, used):
    inputs = draw(200, heads=6, kv_heads=3)
    alone = attend(*inputs, AttentionSpec(**options))
    assert used == {(threading.get_ident(), 1)}
    used.clear()
    torch.set_num_threads(2)
    shared = attend(*inputs, AttentionSpec(**options))
    assert len(used) == 2
    assert {threads for _, threads in used} == {1}
    assert threading.get_ident() not in {thread for thread, _ in used}
    assert torch.get_num_threads() == 2
    assert set(alone) == {"z", *statistics.names()}
    check_same(shared, alone)


def test_threads_work_on_padding_and_in_inference_mode(draw, used):
    inputs = draw(150, heads=6, kv_heads=3)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[1, :40] = False
    alone = attend(*inputs, AttentionSpec(key_mask=mask))
    torch.set_num_threads(2)
    with torch.inference_mode():
        shared = attend(*inputs, AttentionSpec(key_mask=mask))
    check_same(shared, alone)


def test_a_failure_reaches_the_caller(draw, monkeypatch):
    monkeypatch.setattr(plan, "PANEL_ELEMENTS", 1 << 12)
    begun: list[Part] = []
    fill = Panels.fill

    def fail(self: Panels, part: Part, *memory: Any) -> Iterator[Any]:
        begun.append(part)
        if len(begun) == 2:
            raise ZeroDivisionError("planted")
        return fill(self, part, *memory)

    monkeypatch.setattr(Panels, "fill", fail)
    inputs = draw(200, heads=8, kv_heads=8)
    before = threading.active_count()
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError, match="planted"):
        attend(*inputs)
    assert torch.get_num_threads() == 2
    assert threading.active_count() == before
    # A thread of the future starts with the caller's setting as well.
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [2]


def test_tasks_after_a_failure_are_dropped():
    torch.set_num_threads(2)
    done: list[int] = []
    failed = threading.Event()

    def work(tasks: Iterator[int]) -> None:
        for task in tasks:
            if task == 0:
                failed.set()
                raise ValueError("planted")
            assert failed.wait(5)
            done.append(task)

    with pytest.raises(ValueError, match="planted"):
        run_in_threads(range(100_000), work, workers=2)
    assert len(done) < 99_999


def test_one_task_stays_in_the_thread_of_the_caller():
    threads: list[int] = []

    def work(tasks: Iterator[int]) -> None:
        threads.extend(threading.get_ident() for _ in tasks)

    run_in_threads([1], work, workers=4)
    run_in_threads([1, 2], work, workers=1)
    assert threads == [threading.get_ident()] * 3


def test_autocast_does_not_reach_the_engine():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, 40, 16, generator=generator) for _ in range(3))
    request = Request(stats=("entropy", "received"))
    plain = attend(q, k, v, request)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = attend(q, k, v, request)
    check_same(under, plain)
