"""Measure attention on this machine's CPU and keep the result beside the others.

python -P benchmarks/cpu.py          1024 to 4096 tokens, some minutes
python -P benchmarks/cpu.py --long   also 8192 and 16384 tokens, and FlexAttention, as committed
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from headscope_benchmarks import machine, runner, terminal


def main() -> int:
    """Measure, write the result, and print its tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="measure attention on this machine's CPU")
    parser.add_argument("--long", action="store_true", help="also 8192, 16384 tokens and --flex")
    parser.add_argument("--flex", action="store_true", help="also FlexAttention, compiled")
    parser.add_argument("--length", type=int, action="append", help="tokens, several")
    parser.add_argument("--heads", type=int, default=runner.HEADS, help="heads of size 64")
    parser.add_argument("--rounds", type=int, default=5, help="calls that count")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the result")
    options = parser.parse_args()
    terminal.check_folder(options.out)
    lengths = [*(options.length or runner.LENGTHS), *(runner.LONG if options.long else ())]
    result = runner.run_cpu(
        lengths,
        heads=options.heads,
        rounds=options.rounds,
        flex=options.flex or options.long,
        progress=terminal.report,
    )
    return terminal.finish(result, machine.slug(result["machine"]), options.out)


if __name__ == "__main__":
    terminal.run(main)
