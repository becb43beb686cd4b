"""Attention with capture: exact statistics of every head in one pass, without the N×N matrix.

Queries are taken in panels of some hundred rows, each against all keys that it sees, so softmax is
exact and every statistic is the textbook formula on a matrix that fits the processor's cache.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels import inputs, statistics
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.compiled.library import ENGINES as PANEL_ENGINES
from headscope.kernels.compiled.library import Engine as PanelEngineName
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels.engine import PanelEngine
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic, check_distribution

Engine = PanelEngineName | Literal["triton"]
ENGINES: tuple[Engine, ...] = (*PANEL_ENGINES, "triton")


def attend(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    request: Request,
    spec: AttentionSpec = PLAIN,
    *,
    engine: Engine = "auto",
) -> dict[str, Tensor]:
    """Compute attention and statistics of its weights, with memory linear in the text.

    Query head h uses KV head h // (head / kv_head). No gradient is kept: see
    ``attend_differentiable``.

    Parameters
    ----------
    q, k, v
        Queries, keys and values after any position encoding; float32, bfloat16 or float16, computed
        in float32.
    request
        Which statistics, and their parameters.
    spec
        How scores become weights: order, window, padding, caps, biases, sinks, edits.
    engine
        ``panels`` is torch alone, ``compiled`` demands the sweep that the machine's C compiler
        builds, ``triton`` demands a GPU; ``auto`` takes Triton on a GPU where it is installed and
        the heads are not too large, and elsewhere the sweep where it can. The numbers are the same
        to rounding. A statistic's declaration names its Triton pass.

    Returns
    -------
    ``z`` (batch, head, query, value_size) and every statistic asked for, (batch, head, *its dims),
    in float32. At a query that is padding or sees no key, ``z`` is 0, ``lse`` is -inf, and
    statistics are NaN; it adds nothing to statistics of keys and tiles.

    References
    ----------
    Self-attention Does Not Need O(n²) Memory (Rabe and Staats 2021).

    Examples
    --------
    >>> q = k = v = torch.zeros(1, 1, 4, 8)
    >>> attend(q, k, v, Request(stats=("received",)))["received"]
    tensor([[[0.5208, 0.3611, 0.2917, 0.2500]]])
    """
    inputs.check_tensors(q, k, v, inputs.DTYPES)
    inputs.check_request(request, q.shape[0], q.shape[2], k.shape[2])
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise InvalidInput(
            "q, k, v: capture keeps no gradient; call it under torch.no_grad(), "
            "or use attend_differentiable for z"
        )
    chosen = [statistics.load(name) for name in dict.fromkeys(("z", *request.stats))]
    check_distribution(chosen, spec)
    reductions = frozenset[str]().union(*(statistic.reads for statistic in chosen))
    by: PanelEngineName = "auto" if engine == "triton" else engine
    panels = Panels(q, k, v, spec.fit(q, k), request, reductions=reductions, engine=by)
    run = engine_of(panels, engine)
    # Autocast belongs to a thread, and would make products coarser than the inputs in some of them.
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        results = run(chosen)
        gate = None if panels.spec.edits is None else panels.spec.edits.gate
        if gate is not None:
            results["z"].mul_(gate[:, :, None, None])
    return results


def engine_of(panels: Panels, name: Engine) -> Callable[[list[Statistic]], dict[str, Tensor]]:
    """Choose the engine of a call."""
    if name not in ENGINES:
        raise InvalidInput(f"engine: {name!r}; choose from {', '.join(ENGINES)}")
    on_gpu = panels.q.device.type == "cuda"
    if name in ("panels", "compiled") or (name == "auto" and not on_gpu):
        return PanelEngine(panels).run
    if importlib.util.find_spec("triton") is None:
        if name == "auto":
            return PanelEngine(panels).run
        raise InvalidInput(
            "engine: triton is not installed; pip install triton, or engine='panels'"
        )
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise InvalidInput(
            f"engine: triton needs a GPU, and the tensors are on {panels.q.device}; move them with "
            ".to('cuda'), or engine='panels'"
        )
    from headscope.kernels.triton.engine import TritonEngine
    from headscope.kernels.triton.plan import fits

    if name == "auto" and not fits(panels.q, panels.v):
        return PanelEngine(panels).run
    return TritonEngine(panels).run
