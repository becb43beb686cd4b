"""What an attention call takes besides its results, counted before it runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.panels.plan import PanelPlan
from headscope.kernels.request import Request


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of an attention call besides its inputs and results.

    Parameters
    ----------
    workers
        Threads that compute side by side.
    worker_bytes
        Bytes that each of them takes for panels, keys and values.
    panel_elements
        Elements of its largest panel: statistics that no compiled reduction fills in make tensors
        of this size.
    """

    workers: int
    worker_bytes: int
    panel_elements: int


def estimate_memory(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    stats: Iterable[str],
    request: Request,
    spec: AttentionSpec = PLAIN,
) -> MemoryEstimate:
    """Estimate the memory of ``attend`` without running it.

    Parameters
    ----------
    q, k, v, spec
        As in ``attend``. Only shapes, type and device count: tensors that are expanded from a
        single number will do.
    stats
        Statistics; a ``pattern`` is no more than its panel, and is left out.
    request
        Their parameters.

    Examples
    --------
    >>> import torch
    >>> q = torch.zeros(1).expand(1, 2, 8, 4)
    >>> estimate_memory(q, q, q, ("entropy",), Request(stats=())).workers > 0
    True
    """
    names = {"z", *stats} - {"pattern"}
    reads = frozenset[str]().union(*(statistics.load(name).reads for name in names))
    plan = PanelPlan(q, k, v, spec.fit(q, k), request, reductions=reads)
    workers = min(plan.workers, sum(1 for _ in plan.parts()))
    return MemoryEstimate(workers, plan.worker_bytes, plan.panel_elements)
