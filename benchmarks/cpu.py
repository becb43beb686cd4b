"""Measure this machine and keep the result beside the others: python -P benchmarks/cpu.py."""

import sys
from pathlib import Path

from rich.console import Console

from headscope.app import bench
from headscope.app.progress import bar
from headscope.app.ratios import tables

FOLDER = Path(__file__).parent / "results"

with bar(Console(stderr=True)) as progress:
    lengths = (*bench.LENGTHS, *bench.LONG) if "--long" in sys.argv[1:] else bench.LENGTHS
    result = bench.run(lengths, progress=progress)
FOLDER.mkdir(exist_ok=True)
bench.save(result, FOLDER / f"{bench.slug(result['machine'])}.json")
for table in tables(result):
    Console().print(table)
