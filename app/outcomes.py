"""Outcomes of analyses: a result, or the reason why there is none, and how a run stores it."""

from __future__ import annotations

import traceback

import xarray as xr

from headscope import analyses
from headscope.kernels.errors import HeadscopeError
from headscope.probes.storage import dataset_file
from headscope.probes.storage.run_folder import Run

Outcome = xr.Dataset | Exception
"""A result, or why there is none: a refusal of headscope's, or a bug."""


def store(run: Run, name: str, outcome: Outcome) -> None:
    """Write a result into the run, or the reason why there is none."""
    file = run.error_file(name)
    if isinstance(outcome, xr.Dataset):
        run.save_result(name, outcome)
        file.unlink(missing_ok=True)
        return
    if name not in run.results():
        run.save_result(name, skipped(name, reason(outcome)))
    if is_bug(outcome):
        dataset_file.write_text(file, "".join(traceback.format_exception(outcome)))


def is_bug(outcome: object) -> bool:
    """Return whether an analysis has failed by a fault of its own, which no user can mend."""
    return isinstance(outcome, Exception) and not isinstance(outcome, HeadscopeError)


def reason(error: BaseException) -> str:
    """Return in one line why there is no result.

    >>> reason(ZeroDivisionError("by nothing\\nat all")), reason(KeyError())
    ('ZeroDivisionError: by nothing', 'KeyError')
    """
    if isinstance(error, HeadscopeError):
        return " ".join(str(error).split())
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines else kind


def skipped(name: str, reason: str) -> xr.Dataset:
    """Return a placeholder for a missing result, with the reason for the report."""
    title = analyses.summary(name)
    return xr.Dataset(attrs={"analysis": name, "title": title, "skipped": reason})


def finished(run: Run) -> list[str]:
    """List the analyses that have a result in a run; what was refused may be tried again."""
    return [name for name, result in run.results().items() if "skipped" not in result.attrs]
