"""Measure the first CUDA device and keep the result beside the others.

python3 -P benchmarks/gpu.py              every length and shape, about ten minutes
python3 -P benchmarks/gpu.py --size 128   heads of one size, in a file of their own
python3 -P benchmarks/gpu.py --quick      three lengths, heads of 128, in a file of their own

A result is benchmarks/results/gpu-<device>.json; --out names another folder. It needs torch and
Triton; headscope itself need not be installed.
"""

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("headscope") is None:
    # The folders at the root are the parts of one namespace package.
    package = types.ModuleType("headscope")
    package.__path__ = [str(ROOT)]
    sys.modules["headscope"] = package

from headscope.app.bench import gpu, gpu_contenders, machine  # noqa: E402
from headscope.app.bench.sheets import sheets  # noqa: E402
from headscope.kernels.errors import HeadscopeError  # noqa: E402

QUICK = {"lengths": (2048, 8192, 131072), "sizes": (128,), "rounds": 3}


def main() -> None:
    """Measure, write the result, and print its tables."""
    reader = argparse.ArgumentParser(description="measure the first CUDA device")
    reader.add_argument("--quick", action="store_true")
    reader.add_argument("--size", type=int, choices=gpu_contenders.SIZES)
    reader.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = reader.parse_args()
    options, part = {}, ""
    if given.quick:
        options, part = QUICK, "-quick"
    elif given.size:
        options, part = {"sizes": (given.size,)}, f"-{given.size}"
    result = gpu.run(**options, progress=lambda step: print(step, file=sys.stderr, flush=True))
    file = given.out / f"{machine.slug(result['machine'])}{part}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for sheet in sheets(result):
        print(f"\n{sheet.title}\n" + "\t".join(sheet.columns))
        for row in sheet.rows:
            print("\t".join(row))
    print(f"\nresult: {file}")


try:
    main()
except HeadscopeError as refusal:
    sys.exit(f"error: {refusal}")
