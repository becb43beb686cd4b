"""The command that measures headscope on the machine it runs on."""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from headscope.app.cli.console import err, out, print_text
from headscope.app.cli.progress import bar
from headscope.kernels.errors import HeadscopeError, InvalidInput
from headscope.kernels.formatting import amount

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (1024, 2048, 4096)
LONG = (8192, 16384)
CHECKED_LENGTH = 257
STATISTICS: tuple[str, ...] = ("lse", "max_weight", "entropy", "first_mass", "received")
STATISTICS += ("pooled_mean", "distance_hist")
CALLS = ("SDPA", "headscope", "headscope, top 8", "eager")
TOLERANCE = 1e-5
"""Largest error: of the entropy in nats, of others relative to the largest value."""
MATRICES = 3
"""N×N matrices of every head that eager attention holds at once."""
CAPTION = (
    "Time / that of SDPA, torch's fused attention, in turn in one run; causal, float32. headscope "
    f"returns {', '.join(STATISTICS)} and z; eager attention, Hugging Face's, z alone."
)
SCRIPT = "benchmarks/cpu.py of headscope's repository"

Call = Callable[[], Mapping[str, "Tensor"]]


def bench(
    long: Annotated[bool, typer.Option("--long", help="also 8192 and 16384 tokens")] = False,
    file: Annotated[
        Path | None, typer.Option("--out", help="JSON file for the result, replaced if there")
    ] = None,
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", min=1, help="tokens, several; default: 1024, 2048, 4096"),
    ] = None,
    heads: Annotated[int, typer.Option(min=1, help="heads of size 64")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="calls that count")] = 5,
    flex: Annotated[
        bool, typer.Option("--flex", help=f"FlexAttention: measured by {SCRIPT}")
    ] = False,
) -> None:
    """Measure headscope beside fused and eager attention on this machine, about a minute."""
    import torch

    if flex:
        raise InvalidInput(f"--flex: this command has no FlexAttention; run {SCRIPT} --flex")
    if file is not None and not file.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {file.parent}; make it first")
    _check(*_prepare(CHECKED_LENGTH, heads))
    measured_lengths = sorted({*(lengths or LENGTHS), *(LONG if long else ())})
    rows = []
    with bar(err) as progress:
        for number, length in enumerate(measured_lengths):
            progress("attention", number, len(measured_lengths))
            rows.append({"length": length, "median_ms": _time(_prepare(length, heads)[0], rounds)})
        progress("attention", len(measured_lengths), len(measured_lengths))
    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    for column in ("tokens", "SDPA ms", *CALLS[1:]):
        table.add_column(column, justify="right")
    for row in rows:
        times = row["median_ms"]
        ratios = (f"{times[name] / times['SDPA']:.2f}×" if name in times else "–" for name in CALLS)
        table.add_row(str(row["length"]), f"{times['SDPA']:.1f}", *list(ratios)[1:])
    out.print(table)
    print_text(f"other engines, memory, a TransformerBridge and the bars: {SCRIPT}")
    if file is not None:
        setup = {"heads": heads, "rounds": rounds, "threads": torch.get_num_threads()}
        file.write_text(json.dumps({**setup, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        print_text(f"result: {file}")


def _prepare(length: int, heads: int) -> tuple[dict[str, Call], Call]:
    """Prepare calls on random inputs, eager attention where its matrices fit, and the oracle."""
    import torch
    from transformers.models.llama.modeling_llama import eager_attention_forward

    from headscope.kernels import api

    draw = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, heads, length, 64, generator=draw) for _ in range(3))
    request = api.Request(stats=STATISTICS, tile=max(length // 64, 16), k=8)
    top = replace(request, stats=(*STATISTICS, "topk"))

    def fused() -> dict[str, Tensor]:
        attend = torch.nn.functional.scaled_dot_product_attention
        return {"z": attend(q, k, v, is_causal=True)}

    calls: dict[str, Call] = {
        "SDPA": fused,
        "headscope": lambda: api.attend(q, k, v, request),
        "headscope, top 8": lambda: api.attend(q, k, v, top),
    }
    if MATRICES * heads * length**2 * 4 < 0.6 * api.memory.available():
        module: Any = SimpleNamespace(num_key_value_groups=1, training=False)
        mask = torch.full((1, 1, length, length), torch.finfo(q.dtype).min).triu(1)

        def eager() -> dict[str, Tensor]:
            z, _ = eager_attention_forward(module, q, k, v, mask, scaling=64**-0.5)
            return {"z": z.transpose(1, 2)}

        calls["eager"] = eager
    return calls, lambda: api.attend_dense(q, k, v, top)


def _check(calls: Mapping[str, Call], oracle: Call) -> None:
    """Compare every output with the dense float64 oracle: no time of wrong numbers is shown."""
    expected = oracle()
    for name, call in calls.items():
        for output, values in call().items():
            right = expected[output].double()
            error = float((values.double() - right).nan_to_num(nan=0.0).abs().max())
            scale = 1.0 if output == "entropy" else max(float(right.nan_to_num().abs().max()), 1.0)
            if not error <= TOLERANCE * scale or not values.isnan().equal(right.isnan()):
                raise HeadscopeError(
                    f"{output}: {name} is off by {amount(error)} from float64; nothing is "
                    "measured, report this with `headscope --version`"
                )


def _time(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Time every call once a round, in turn; the first round warms up. Median milliseconds."""
    from torch.utils import benchmark

    # Not benchmark.Timer, which repeats one call in a block: in turn, other load meets all alike.
    timers = {name: timeit.Timer(call, timer=benchmark.timer) for name, call in calls.items()}
    times = [{name: timer.timeit(1) for name, timer in timers.items()} for _ in range(rounds + 1)]
    return {name: round(1e3 * median(row[name] for row in times[1:]), 3) for name in timers}
