"""A bar for every step on the terminal, with the time that is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Draw a bar for every step that is reported as (step, done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    progress = Progress(*columns, console=console)
    steps: dict[str, TaskID] = {}

    def report(step: str, done: int, total: int) -> None:
        if step not in steps:
            # Not before: input that is refused at once prints its one line and nothing else.
            progress.start()
            steps[step] = progress.add_task(step, total=total)
        progress.update(steps[step], completed=done, total=total)

    try:
        yield report
    finally:
        if steps:
            progress.stop()
