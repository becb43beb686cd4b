"""Threads that share a list of tasks, each running torch on one core.

Small operations gain little from OpenMP threads inside each of them; whole tasks side by side keep
every core busy, and another program on the machine delays one task instead of every operation.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")


def run_in_threads(
    tasks: Iterable[Task], work: Callable[[Iterator[Task]], None], workers: int
) -> None:
    """Run all tasks, side by side in several threads.

    ``work`` is called once in every worker, in inference mode (quicker for small operations), with
    an iterator over the tasks that are left; tasks must write to disjoint places. One task, or one
    worker, runs in the caller's thread. After a failure tasks not begun are dropped.
    """
    waiting = deque(tasks)
    count = min(len(waiting), workers)
    if count <= 1:
        with torch.inference_mode():
            work(_drain(waiting))
        return
    threads = torch.get_num_threads()

    def run() -> None:
        # A new thread starts with every core, whatever the caller's setting.
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                work(_drain(waiting))
        finally:
            # After a failure nobody wants the rest.
            waiting.clear()

    try:
        with ThreadPoolExecutor(count) as pool:
            for worker in [pool.submit(run) for _ in range(count)]:
                worker.result()
    finally:
        waiting.clear()
        # Workers also set what threads of the future start with.
        torch.set_num_threads(threads)


def _drain(waiting: deque[Task]) -> Iterator[Task]:
    while waiting:
        try:
            task = waiting.popleft()
        except IndexError:  # another worker was faster
            return
        yield task
