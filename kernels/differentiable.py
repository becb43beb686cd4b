"""Attention with gradients, for the runs that need them: torch's own fused attention."""

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels import inputs
from headscope.kernels.refusal import Refused
from headscope.kernels.variant import PLAIN, Variant


def attend_differentiable(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    variant: Variant = PLAIN,
) -> Float[Tensor, "batch head query value_size"]:
    """Compute ``z`` so that gradients reach q, k and v; no statistics.

    Masks are those of ``attend``. A window, padding, or a number of queries other than keys costs a
    query × key mask of bits for each sequence.

    Parameters
    ----------
    q, k, v
        As in ``attend``; float64 is taken as well, and the type is kept.
    variant
        Refused unless it is made of order, window, padding and scale: torch's fused attention has
        no more.

    Returns
    -------
    ``z``, 0 at queries that are padding or see no key.

    Raises
    ------
    Refused
        When tensors or masks do not fit, or the variant has more.

    Examples
    --------
    >>> q = torch.ones(1, 2, 3, 4, requires_grad=True)
    >>> attend_differentiable(q, q, q).sum().backward()
    >>> q.grad.shape
    torch.Size([1, 2, 3, 4])
    """
    inputs.check_tensors(q, k, v, (*inputs.DTYPES, torch.float64))
    if variant.softcap is not None:
        raise Refused(
            "softcap: torch's fused attention has none, so soft-capped models have no gradients "
            "here; ablate heads instead"
        )
    for name in ("lengths", "slopes", "bias", "sinks", "edits"):
        if getattr(variant, name) is not None:
            raise Refused(f"{name}: no gradients yet")
    variant = variant.fit(q, k)
    causal, scale, key_mask = variant.causal, variant.scale, variant.key_mask
    attention = torch.nn.functional.scaled_dot_product_attention
    grouped = q.shape[1] != k.shape[1]
    plain = variant.window is None and key_mask is None and variant.query_mask is None
    if plain and (not causal or q.shape[2] == k.shape[2]):
        return attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)
    visibility = variant.visibility(q.shape[2], k.shape[2], q.device)
    key = torch.arange(k.shape[2], device=q.device)
    sees = (key >= visibility.low[:, None]) & (key < visibility.high[:, None])
    sees = sees[None] if key_mask is None else sees & key_mask[:, None]
    alive = visibility.alive[:, None, :, None]
    if key_mask is not None:
        # 0 · NaN is NaN, forwards and backwards: padding is replaced before the products.
        k = torch.where(key_mask[:, None, :, None], k, 0.0)
        v = torch.where(key_mask[:, None, :, None], v, 0.0)
    q = torch.where(alive, q, 0.0)
    # A row without any key would be 0 / 0: let it see everything and drop it afterwards.
    mask = sees[:, None] | ~alive
    z = attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return torch.where(alive, z, 0.0)
