"""Measure this machine and keep the result beside the others.

python -P benchmarks/cpu.py          1024 to 4096 tokens, some minutes
python -P benchmarks/cpu.py --long   also 8192 and 16384 tokens, and FlexAttention
"""

import sys
from pathlib import Path

from rich.console import Console

from headscope.app.bench import cpu, machine
from headscope.app.bench.ratios import tables
from headscope.app.cli.progress import bar

FOLDER = Path(__file__).parent / "results"

with bar(Console(stderr=True)) as progress:
    long = "--long" in sys.argv[1:]
    lengths = (*cpu.LENGTHS, *cpu.LONG) if long else cpu.LENGTHS
    result = cpu.run(lengths, flex=long, progress=progress)
FOLDER.mkdir(exist_ok=True)
cpu.save(result, FOLDER / f"{machine.slug(result['machine'])}.json")
for table in tables(result):
    Console().print(table)
