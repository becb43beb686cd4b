"""Attention with capture: exact statistics of every head in one pass, without the N×N matrix.

Queries are taken in panels of about 128 rows, each against all keys that it sees, so the softmax is
exact and every statistic is the textbook formula on a matrix that fits the processor's cache.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels import inputs, statistics
from headscope.kernels.engine import PanelEngine
from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.kernels.visibility import Visibility


def attend(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    request: Request,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    key_mask: Bool[Tensor, "batch key"] | None = None,
    query_mask: Bool[Tensor, "batch query"] | None = None,
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
    scale
        Factor of the scores; None is 1/√size.
    causal
        Whether a query sees no later key. Query i then stands at position key - query + i.
    window
        Number of keys back that a causal query sees, itself included; without ``causal`` the keys
        at distance below ``window`` on both sides.
    softcap
        Cap c of the scores, c · tanh(score / c), applied before masks.
    key_mask
        True at real keys. Padding enters no statistic, whatever it contains.
    query_mask
        True at real queries. By default all are, except that in causal attention a query is
        padding when its own key is.

    Returns
    -------
    ``z`` (batch, head, query, value_size) and every statistic asked for, (batch, head, *its dims),
    in float32. At a query that is padding or sees no key, ``z`` is 0, ``lse`` is -inf, and
    statistics are NaN; it takes no part in statistics of keys and tiles.

    Raises
    ------
    Refused
        When tensors, masks or request do not fit, or when q, k or v need a gradient.

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
    inputs.check_options(scale, window, softcap)
    inputs.check_request(request, q.shape[0], q.shape[2], k.shape[2])
    key_mask = inputs.check_mask("key_mask", key_mask, k.shape[0], k.shape[2])
    if query_mask is not None:
        inputs.check_mask("query_mask", query_mask, q.shape[0], q.shape[2])
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise Refused(
            "q, k, v: capture keeps no gradient; call it under torch.no_grad(), "
            "or use attend_differentiable for z"
        )
    query_mask = inputs.real_queries(q, k, causal, key_mask, query_mask)
    visibility = Visibility(q.shape[2], k.shape[2], causal, window, key_mask, query_mask, q.device)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    chosen = [statistics.load(name) for name in dict.fromkeys(("z", *request.stats))]
    # Autocast belongs to a thread, and would make products coarser than the inputs in some of them.
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        return PanelEngine(q, k, v, request, visibility, scale, softcap).run(chosen)
