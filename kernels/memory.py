"""Memory of the machine and of this process, as reported by the operating system."""

import os
from pathlib import Path

from headscope.kernels.errors import NotApplicable

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
INFO = Path("/proc/meminfo")
LIMIT = Path("/sys/fs/cgroup/memory.max")
USED = Path("/sys/fs/cgroup/memory.current")


def total() -> int:
    """Count the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """Count the bytes that this process may still take without swapping.

    Linux's own estimate where there is one, within the limit of a container; elsewhere what is
    free.
    """
    if INFO.exists():
        free = _field(INFO, "MemAvailable")
    else:
        pages = "SC_AVPHYS_PAGES"
        # macOS does not report what is free.
        free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in os.sysconf_names else None
    count = total() if free is None else free
    if LIMIT.exists() and USED.exists():
        limit = LIMIT.read_text().strip()
        if limit.isdigit():
            count = min(count, max(int(limit) - int(USED.read_text()), 0))
    return count


def measurable() -> bool:
    """Whether the system reports the memory of this process."""
    return STATUS.exists() and RESET.exists()


def resident() -> int:
    """Count the bytes of this process that are in memory."""
    return _status("VmRSS")


def peak() -> int:
    """Count the most bytes of this process that were in memory since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset `peak`."""
    RESET.write_text("5")


def _status(name: str) -> int:
    count = _field(STATUS, name) if STATUS.exists() else None
    if count is None:
        raise NotApplicable(
            f"memory: {STATUS} has no {name}; only Linux tells what a process takes"
        )
    return count


def _field(file: Path, name: str) -> int | None:
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
