"""Attention with gradients: ``z`` and the statistics that a loss may depend on."""

from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels import inputs, statistics
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.kernels.gradients import custom_op
from headscope.kernels.request import Request
from headscope.kernels.statistic import check_distribution

DIFFERENTIABLE = ("z", "lse", "entropy", "span_mass")
NOTHING = Request(stats=())
FUSED = (torch.bfloat16, torch.float16)
"""Types for which torch has fused attention with grouped heads on every recent GPU."""
PLAIN_TOO = ("scale", "causal", "sigmoid", "edits")
"""Fields of a variant that plain attention may have, or that are checked one by one."""


def attend_differentiable(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    request: Request = NOTHING,
    spec: AttentionSpec = PLAIN,
) -> dict[str, Tensor]:
    """Compute attention and statistics of its weights, through which gradients pass.

    Gradients reach q, k, v, the spec's ``sinks`` and its edits' ``gate``; a head's gate gets
    Σ z · ∂loss/∂z, its importance. Memory is linear in the text, backwards too. Where only ``z`` of
    plain attention is asked for, torch's own fused attention is faster and is taken.

    Parameters
    ----------
    q, k, v
        As in ``attend``; float64 is taken as well, and computed in float64.
    request
        ``lse``, ``entropy`` and ``span_mass`` have gradients; ``z`` is always computed.
    spec
        How scores become weights. Biases, slopes, temperatures and fixed patterns
        are constants.

    Returns
    -------
    As ``attend``. ``z`` of plain bfloat16 or float16 attention is rounded to that type on the way.

    Raises
    ------
    NotApplicable
        When tensors, spec or request do not fit, a statistic has no gradient, a constant asks
        for one, or a second derivative is taken.

    References
    ----------
    FlashAttention (Dao et al. 2022). Are Sixteen Heads Really Better than One? (Michel et al. 2019)
    for gates.

    Examples
    --------
    >>> q = torch.ones(1, 2, 3, 4, requires_grad=True)
    >>> results = attend_differentiable(q, q, q, Request(stats=("entropy",)))
    >>> results["entropy"].sum().backward()
    >>> q.grad.shape
    torch.Size([1, 2, 3, 4])
    """
    inputs.check_tensors(q, k, v, (*inputs.DTYPES, torch.float64))
    inputs.check_request(request, q.shape[0], q.shape[2], k.shape[2])
    check_distribution(map(statistics.load, request.stats), spec)
    for name in request.stats:
        if name not in DIFFERENTIABLE:
            raise NotApplicable(
                f"stats: {name} has no gradient, only {', '.join(DIFFERENTIABLE)} have; "
                "ask attend for it, under torch.no_grad()"
            )
    spec = spec.fit(q, k)
    refuse_constants(spec)
    edits = spec.edits
    if is_fused(q, k, v, request, spec):
        z = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=spec.causal, scale=spec.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        results = {"z": z.to(torch.promote_types(z.dtype, torch.float32))}
    else:
        results = custom_op.run(q, k, v, request, spec)
    if edits is not None and edits.gate is not None:
        results["z"] = results["z"] * edits.gate[:, :, None, None]
    return results


def refuse_constants(spec: AttentionSpec) -> None:
    """Refuse to drop the gradient of a bias, slope or temperature."""
    if not torch.is_grad_enabled():
        return
    for owner in (spec, spec.edits):
        for name in ("slopes", "bias", "key_bias", "span_bias", "temperature", "pattern"):
            tensor = getattr(owner, name, None)
            if tensor is not None and tensor.requires_grad:
                raise InvalidInput(f"{name}: a constant, it gets no gradient; give {name}.detach()")


def is_fused(q: Tensor, k: Tensor, v: Tensor, request: Request, spec: AttentionSpec) -> bool:
    """Whether torch's fused attention computes all of this, without a query × key matrix."""
    special = [getattr(spec, field.name) for field in fields(spec) if field.name not in PLAIN_TOO]
    if spec.edits is not None:
        special += [getattr(spec.edits, name) for name in custom_op.OF_EDITS]
    if set(request.stats) - {"z"} or spec.sigmoid or any(value is not None for value in special):
        return False
    # For all else torch falls back to the whole matrix.
    if v.shape[3] != q.shape[3] or (spec.causal and q.shape[2] != k.shape[2]):
        return False
    if any(tensor.stride(3) != 1 for tensor in (q, k, v)):
        return False
    return q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype in FUSED)
