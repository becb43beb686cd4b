"""Measure attention on the first CUDA device and keep the result beside the others.

python3 -P benchmarks/gpu.py              every length and shape, about ten minutes
python3 -P benchmarks/gpu.py --size 128   heads of one size, in a file of their own
python3 -P benchmarks/gpu.py --quick      three lengths, heads of 128, in a file of their own

A result is benchmarks/results/gpu-<device>.json; --out names another folder. It needs torch and
Triton; headscope itself need not be installed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from headscope_benchmarks import machine, runner, shapes, terminal

QUICK: dict[str, Any] = {"lengths": (2048, 8192, 131072), "sizes": (128,), "rounds": 3}


def main() -> int:
    """Measure, write the result, and print its tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="measure attention on the first CUDA device")
    parser.add_argument("--quick", action="store_true", help="three lengths, heads of 128")
    parser.add_argument("--size", type=int, choices=shapes.GPU_SIZES, help="size of a head")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the result")
    options = parser.parse_args()
    terminal.check_folder(options.out)
    chosen: dict[str, Any] = {}
    part = ""
    if options.quick:
        chosen, part = QUICK, "-quick"
    elif options.size:
        chosen, part = {"sizes": (options.size,)}, f"-{options.size}"
    result = runner.run_gpu(**chosen, progress=terminal.report)
    return terminal.finish(result, machine.slug(result["machine"]) + part, options.out)


if __name__ == "__main__":
    terminal.run(main)
