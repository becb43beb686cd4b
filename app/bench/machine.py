"""The machine that a benchmark ran on, without its name."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headscope.kernels.api import memory
from headscope.kernels.errors import InvalidInput

# Result files are read by people, who look for a name that says what the machine is.
UNNAMED = "unknown processor"


def describe() -> dict[str, Any]:
    """Describe processor, memory and versions.

    Examples
    --------
    >>> describe()["torch"] == torch.__version__
    True
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory.total() / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def describe_gpu() -> dict[str, Any]:
    """Describe the first CUDA device beside the rest of the machine.

    Raises
    ------
    InvalidInput
        When torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise InvalidInput(
            "device: torch sees no CUDA device here; `headscope bench` measures the processor"
        )
    device = torch.cuda.get_device_properties(0)
    cudnn: Any = torch.backends.cudnn
    return {
        "gpu": device.name,
        "capability": [device.major, device.minor],
        "multiprocessors": device.multi_processor_count,
        "gpu_memory_gb": round(device.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "triton": version("triton"),
        **describe(),
    }


def load() -> float:
    """Measure how many processes wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def slug(described: Mapping[str, Any]) -> str:
    """Name a machine's result file after its processor, the graphics processor where it has one.

    Examples
    --------
    >>> slug({"cpu": "Intel(R) Xeon(R) Processor"})
    'cpu-intel-r-xeon-r-processor'
    >>> slug({"gpu": "NVIDIA H200", "cpu": "Intel(R) Xeon(R) Processor"})
    'gpu-nvidia-h200'
    """
    kind = "gpu" if "gpu" in described else "cpu"
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", str(described[kind]).lower()).strip("-")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine() or UNNAMED
