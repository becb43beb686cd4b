"""The machine that a benchmark ran on, without its name, and the file of its result."""

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headscope.kernels.api import memory
from headscope.kernels.errors import ResourceLimit

RESULTS = Path(__file__).parents[1] / "results"


def describe() -> dict[str, Any]:
    """Describe processor, memory and versions."""
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
    ResourceLimit
        When torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise ResourceLimit(
            "device: torch sees no CUDA device here; benchmarks/cpu.py measures the CPU"
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
    """Return the name of a machine's result file after its processor, the GPU where it has one.

    Examples
    --------
    >>> slug({"cpu": "Intel(R) Xeon(R) Processor"})
    'cpu-intel-r-xeon-r-processor'
    >>> slug({"gpu": "NVIDIA H200", "cpu": "Intel(R) Xeon(R) Processor"})
    'gpu-nvidia-h200'
    """
    kind = "gpu" if "gpu" in described else "cpu"
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", str(described[kind]).lower()).strip("-")


def save(result: Mapping[str, Any], name: str, folder: Path = RESULTS) -> Path:
    """Write a result as JSON, whole or not at all; return its file."""
    file = folder / f"{name}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(file)
    return file


def _cpu() -> str:
    """Return the name of the processor; people read result files."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine() or "unknown processor"
