"""Triton passes: what a capture on a GPU is made of, each alone."""

from functools import partial
from typing import Any

from torch import Tensor

from headscope.kernels.api import AttentionSpec
from headscope.kernels.errors import NotApplicable
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.statistics import load
from headscope_benchmarks.shapes import COLUMNS, request

# Triton is not there on every machine that checks this file: its users are imported where used.

BASE2 = "lse, base 2"
"""What our forward pass calls its normaliser, in the units that it leaves it in."""
FORWARD = ("forward", "forward_rows")
"""Our fused forward pass alone: z and lse, and with maximum and entropy."""
SECOND = ("second/columns", "second/top8")
"""Our passes over the weights alone, with lse known: received and pooled, and all that they can."""
PLANS = ("fused/top8", "stock/top8")
"""Every statistic after our forward pass and after torch's, for the planner's table."""


def prepare(name: str, q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Prepare one of ``FORWARD``, ``SECOND`` or ``PLANS``: a function of q, k and v.

    Raises
    ------
    NotApplicable
        When no kernel computes what the pass is for.
    """
    kind, _, column = name.partition("/")
    if name in FORWARD:
        return partial(_forward, rows=name == "forward_rows")
    if name in PLANS:
        return partial(_planned, forward=kind, column=column)
    return _second(q, k, v, column)


def _forward(q: Tensor, k: Tensor, v: Tensor, rows: bool) -> dict[str, Tensor]:
    from headscope.kernels.triton import first_pass

    result = first_pass.run(_launch(q, k, v), max_weight=rows, entropy=rows)
    outputs = {
        "z": result.z,
        BASE2: result.lse,
        "max_weight": result.max_weight,
        "entropy": result.entropy,
    }
    return {name: values for name, values in outputs.items() if values is not None}


def _second(q: Tensor, k: Tensor, v: Tensor, column: str) -> Any:
    from headscope.kernels.triton import first_pass
    from headscope.kernels.triton.plan import PASSES, ways

    lse = first_pass.run(_launch(q, k, v)).lse
    spec = request(q.shape[2], column)
    only = COLUMNS[column] if column == "columns" else spec.stats
    way_of = ways(only, stock=True)
    if not PASSES.keys() & way_of.values():
        raise NotApplicable(f"second pass: no Triton kernel computes any of {', '.join(only)}")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        launch = _launch(q, k, v)
        outputs: dict[str, Tensor] = {}
        for pass_name, later in PASSES.items():
            names = [name for name in only if way_of[name] == pass_name]
            if names:
                outputs |= later(launch, lse, names, spec)
        return outputs

    return attend


def _planned(q: Tensor, k: Tensor, v: Tensor, forward: Any, column: str) -> dict[str, Tensor]:
    from headscope.kernels.triton.engine import TritonEngine

    spec = request(q.shape[2], column)
    panels = Panels(q, k, v, AttentionSpec().fit(q, k), spec)
    chosen = [load(name) for name in ("z", *spec.stats)]
    results: dict[str, Tensor] = TritonEngine(panels, forward).run(chosen)
    return results


def _launch(q: Tensor, k: Tensor, v: Tensor) -> Any:
    from headscope.kernels.triton.launch import Launch

    return Launch(q, k, v, AttentionSpec().fit(q, k))
