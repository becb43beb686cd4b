"""The dashboard in a process of its own, as the command line starts it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headscope_benchmarks.sessions import serve


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Serve a run as the command line does; yields the address."""
    with serve(run) as (address, _):
        yield address
