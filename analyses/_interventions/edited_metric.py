"""Progress of work in steps, where a caller hands a function down."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]


def counter(progress: Progress | None, total: int) -> Callable[[], None]:
    """Return a function that reports one more of ``total`` as done, each time it is called."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    return step
