"""The command that measures headscope on the machine it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from headscope.app.cli.progress import bar
from headscope.kernels.errors import InvalidInput

out = Console()
err = Console(stderr=True)


def bench(
    long: Annotated[
        bool, typer.Option("--long", help="also 8192 and 16384 tokens, and --flex")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--out", help="JSON file for the result, replaced if there")
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", min=1, help="tokens, several; default: 1024, 2048, 4096"),
    ] = None,
    heads: Annotated[int, typer.Option("--heads", min=1, help="heads of size 64")] = 12,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="calls that count")] = 5,
    flex: Annotated[
        bool, typer.Option("--flex", help="also FlexAttention, which has to be compiled")
    ] = False,
) -> None:
    """Measure headscope beside fused and eager attention on this machine, some minutes."""
    from headscope.app.bench import cpu as benchmark
    from headscope.app.bench.ratios import tables

    if file is not None and not file.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {file.parent}; make it first")
    wanted = [*(lengths or benchmark.LENGTHS), *(benchmark.LONG if long else ())]
    with bar(err) as progress:
        result = benchmark.run(
            wanted, heads=heads, rounds=rounds, flex=flex or long, progress=progress
        )
    if file is not None:
        benchmark.save(result, file)
    for table in tables(result):
        out.print(table)
    if file is not None:
        out.print(f"result: {file}", soft_wrap=True, highlight=False)
