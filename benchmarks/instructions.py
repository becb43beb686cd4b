"""Compile every kernel for GPUs that need not be here: python -P benchmarks/instructions.py.

Keeps registers, spills and instructions per element of a tile of logits in
results/instructions.json, by version of Triton. The test of the same name compiles again and
compares.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.request import Request
from headscope.kernels.triton import column_pass, first_pass, row_pass, topk_pass
from headscope.kernels.triton.columns import reduce_columns
from headscope.kernels.triton.compilation import Compiled, compile_for
from headscope.kernels.triton.configuration import Configuration
from headscope.kernels.triton.forward import attend_queries
from headscope.kernels.triton.launch import Launch
from headscope.kernels.triton.plan import declared
from headscope.kernels.triton.rows import reduce_rows
from headscope.kernels.triton.topk_rows import select_top_rows
from headscope.kernels.weight_edits import WeightEdits

FILE = Path(__file__).parent / "results" / "instructions.json"
ARCHITECTURES = (80, 90)
TOKENS = 512
HEADS = 8


@dataclass(frozen=True)
class Case:
    """A kernel as it is shipped: for one architecture, head size, type and kind of variant.

    Parameters
    ----------
    name
        Name of the kernel and of what it is compiled for.
    arch
        Compute capability, 90 for 9.0.
    chosen
        Tile sizes.
    kernel
        Function under ``triton.jit``.
    arguments
        Makes its arguments.
    """

    name: str
    arch: int
    chosen: Configuration
    kernel: Any
    arguments: Callable[[], dict[str, Any]]

    def compile(self) -> Compiled:
        """Compile the kernel."""
        return compile_for(self.arch, self.kernel, self.arguments(), self.chosen)


def launch_of(
    size: int, dtype: torch.dtype, variant: AttentionSpec, queries: int = TOKENS
) -> Launch:
    """Describe a call of 8 heads, two for each KV head; nothing is computed."""
    q = torch.zeros(1, HEADS, queries, size, dtype=dtype)
    k = v = torch.zeros(1, HEADS // 2, TOKENS, size, dtype=dtype)
    return Launch(q, k, v, variant.fit(q, k))


def several_terms() -> AttentionSpec:
    """Choose nearly every term at once."""
    spans = torch.zeros(1, TOKENS, dtype=torch.int32)
    heads = torch.ones(HEADS)
    return AttentionSpec(
        softcap=50.0,
        slopes=heads,
        bias=torch.zeros(1, 1, TOKENS, TOKENS),
        sinks=heads,
        edits=WeightEdits(
            key_bias=torch.zeros(1, HEADS, TOKENS),
            span_bias=torch.zeros(HEADS, 4, 4),
            query_spans=spans,
            key_spans=spans,
            first=heads.int(),
            recent=heads.int(),
            temperature=heads,
        ),
    )


def forward_cases(arch: int) -> Iterator[Case]:
    """List the forward kernel in every shipped configuration."""
    padded = AttentionSpec(edits=WeightEdits(key_bias=torch.zeros(1, HEADS, TOKENS)))
    half, single = torch.bfloat16, torch.float32
    calls = {f"bf16 D{size}": launch_of(size, half, AttentionSpec()) for size in (64, 128, 256)}
    # Without TMA: on sm_80 that is no other configuration.
    for size in (64, 128, 256) if arch == 90 else (128,):
        calls[f"bf16 D{size}, padded"] = launch_of(size, half, padded)
    calls["bf16 D128, several terms"] = launch_of(128, half, several_terms())
    calls["bf16 D128, 8 queries"] = launch_of(128, half, AttentionSpec(), 8)
    for size in (64, 128):
        calls[f"fp32 D{size}"] = launch_of(size, single, AttentionSpec())
    if arch == 90:
        calls["fp32 D128, padded"] = launch_of(128, single, padded)
    for name, launch in calls.items():
        chosen = first_pass.choose(launch, arch)

        def arguments(launch: Launch = launch, chosen: Configuration = chosen) -> dict[str, Any]:
            return first_pass.arguments(launch, chosen, max_weight=True, entropy=True)

        yield Case(f"forward sm_{arch} {name}", arch, chosen, attend_queries, arguments)


LATER = {
    "received": ("received",),
    "columns and tiles": ("received", "received_max", "pooled_mean", "pooled_max"),
    "tiles of 7 tokens": ("pooled_mean", "pooled_max"),
    "mass": ("mass",),
    "distances": ("distance", "distance_variance", "value_mass"),
    "bins": ("distance_hist",),
    "spans": ("span_mass",),
    "top 8": ("topk",),
}
"""Passes over the weights, by what they are asked for."""


def later_arguments(launch: Launch, pass_name: str, arch: int) -> tuple[Any, dict, Configuration]:
    """Collect kernel, arguments and tiles of a pass over the weights."""
    lse = torch.zeros(launch.q.shape[:3])
    spans = torch.zeros(1, TOKENS, dtype=torch.int32)
    request = Request(stats=(), spans=spans)
    names = LATER[pass_name]
    if names[0] in declared("columns"):
        chosen = column_pass.choose(launch, arch)
        tile = 7 if "7" in pass_name else 16
        return reduce_columns, column_pass.arguments(launch, lse, names, tile, chosen)[0], chosen
    if names[0] in declared("topk"):
        chosen = topk_pass.choose(launch, arch)
        return select_top_rows, topk_pass.arguments(launch, 0, slice(0, HEADS), 8, chosen), chosen
    plans = row_pass.plan(launch, names, request)[1]
    assert len(plans) == 1
    chosen = row_pass.choose(launch, plans[0], arch)
    return reduce_rows, row_pass.arguments(launch, lse, plans[0], chosen), chosen


def later_cases(arch: int, names: Iterable[str] = LATER) -> Iterator[Case]:
    """List the kernels of the passes over the weights."""
    half, single = torch.bfloat16, torch.float32
    calls = {f"bf16 D{size}": launch_of(size, half, AttentionSpec()) for size in (64, 128, 256)}
    calls["bf16 D128, several terms"] = launch_of(128, half, several_terms())
    for size in (64, 128):
        calls[f"fp32 D{size}"] = launch_of(size, single, AttentionSpec())
    for name, launch in calls.items():
        for pass_name in names:
            kernel, _, chosen = later_arguments(launch, pass_name, arch)

            def arguments(launch: Launch = launch, pass_name: str = pass_name) -> dict[str, Any]:
                return later_arguments(launch, pass_name, arch)[1]

            yield Case(f"{pass_name} sm_{arch} {name}", arch, chosen, kernel, arguments)


def cases() -> list[Case]:
    """List every shipped kernel."""
    return [case for arch in ARCHITECTURES for case in (*forward_cases(arch), *later_cases(arch))]


def keep(figures: dict[str, Any]) -> None:
    """Store the figures of this compiler beside those of others."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    kept[triton.__version__] = figures
    FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


if __name__ == "__main__":
    counts = {}
    for case in cases():
        counts[case.name] = asdict(case.compile())
        print(case.name, counts[case.name], flush=True)
    keep(counts)
