"""Measure the memory of long texts on this machine and keep the result beside the others.

python -P benchmarks/context.py       4096 to 32768 tokens, some minutes

The cache of a TransformerBridge at 8192 tokens takes about 13 GB while it is made; it is left out
where less is free.
"""

from pathlib import Path

from rich.console import Console

from headscope.app.bench import context, cpu, machine
from headscope.app.bench.ratios import draw
from headscope.app.cli.progress import bar

FOLDER = Path(__file__).parent / "results"

with bar(Console(stderr=True)) as progress:
    result = context.run(progress=progress)
FOLDER.mkdir(exist_ok=True)
cpu.save(result, FOLDER / f"context-{machine.slug(result['machine'])}.json")
for sheet in context.context_sheets(result):
    Console().print(draw(sheet))
