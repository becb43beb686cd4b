"""The terminal: progress, tables and errors of a benchmark that is run as a script."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope_benchmarks import machine
from headscope_benchmarks.tables import tables


def report(step: str, done: int, total: int) -> None:
    """Print what is about to be measured."""
    print(f"{step} {done}/{total}", file=sys.stderr, flush=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not there, before the minutes of measuring."""
    if not folder.is_dir():
        raise InvalidInput(f"--out: there is no folder {folder}; make it first")


def finish(result: Mapping[str, Any], name: str, folder: Path) -> int:
    """Write a result and print its tables; return 1 where a target is missed."""
    file = machine.save(result, name, folder)
    for table in tables(result):
        print(f"\n{table}")
    missed = [row["bar"] for row in result["bars"] if row["met"] is False]
    print(f"result: {file}; bars not met: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def run(main: Callable[[], int]) -> None:
    """Run a script; an error of headscope is one line and exit code 2."""
    try:
        sys.exit(main())
    except HeadscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
