"""Contributions: how much of its layer's output each head writes, token by token.

The output of a layer's attention is the sum of its heads, ``o = Σ_h z_h W_O^h`` (and a bias). Per
token, ``‖z_h W_O^h‖`` says how much a head writes, and ``⟨z_h W_O^h, o⟩ / ‖o‖²`` what share of the
sum that is: shares sum to 1, and are negative where a head writes against the others. In a mixture
of attention heads these norms rank the heads that a token is routed to; how evenly they are spread
is the load balance. Size is no importance, so the loss without the head stands beside it.

Sources: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention (2410.11842); Zhang et
al., Mixture of Attention Heads (2210.05144); Kobayashi et al., Attention is Not Only a Weight
(2004.10102).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import predicts, tokens
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import (
    attending,
    averaged,
    dataset,
    interval,
    label,
    require,
    top,
    variable,
)
from headscope.analyses._stats.rank_correlation import agreement, parting

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ()
KEEP = ("z",)

SOURCE = "MoH 2410.11842; Mixture of Attention Heads 2210.05144"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    causal_prompts: int = 4,
    causal_tokens: int = 128,
    seed: int = 0,
) -> xr.Dataset:
    """Measure what share of its layer's output every head writes, and what it costs to lose it.

    Parameters
    ----------
    capture
        Capture of the prompts with the kept ``z``.
    model
        Model that was captured; its output projections turn ``z`` into what heads write.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    causal_tokens
        Tokens of each prompt in the causal check, from the first on.
    seed
        Seed of the bootstrap over prompts.

    Returns ------- Dataset with ``norm_share`` (layer, head; the head's norm over the sum of its
    layer's norms, mean over tokens; 0 to 1), ``output_share`` (layer, head; its projection on the
    layer's output, over that output's squared length; sums to 1 where there is no bias),
    ``head_balance`` (layer; entropy of the norm shares of a token over its largest, mean over
    tokens; 1 is even), ``token_norm`` (layer, head, query; ``‖z W_O‖`` on the first prompt, in
    units of the residual stream) and, for models that predict the next token, ``loss_ablation``
    (layer, head; nats a token lost with the head at zero) and ``share_vs_ablation`` (Spearman ρ),
    with 95 % intervals over prompts.

    Raises
    ------
    HeadscopeError
        When the capture lacks ``z``, or the output projection is not found.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(20)), list(range(2, 22))]
    >>> result = execute("contributions", model, given, options={"causal_prompts": 0})
    >>> bool((abs(result["output_share"].sum("head") - 1) < 1e-4).all())
    True
    """
    from headscope.analyses._measurements import head_outputs
    from headscope.analyses.attribution import _head_writing

    options.at_least("causal_prompts", causal_prompts, 0)
    options.at_least("causal_tokens", causal_tokens, 2)
    require(capture, KEEP, "contributions")
    options.one_text(capture.attrs.get("attention", "self"), "contributions")
    seen = _head_writing.measure(capture, head_outputs.output_weights(model))

    count = capture.sizes["prompt"]
    what = f"mean over tokens of {count} prompts"
    grid = ("layer", "head")
    variables: dict[str, xr.Variable] = {
        **averaged(
            "norm_share", grid, seen.norm_share, "Share of the norms that a layer's heads write",
            "share", "sequential", 0, 1, seed=seed, source=SOURCE,
            convention=f"‖z_h W_O‖ / Σ_h ‖z_h W_O‖ of each token; {what}",
        ),
        **averaged(
            "output_share", grid, seen.output_share, "Share of the layer's output", "share",
            "diverging", seed=seed, source="Kobayashi et al. 2004.10102",
            convention="⟨z_h W_O, o⟩ / ‖o‖² of each token, o = Σ_h z_h W_O; negative: against the "
            f"others; {what}",
        ),
        **averaged(
            "head_balance", ("layer",), seen.balance, "How evenly heads share a token", "share",
            "sequential", 0, 1, seed=seed, source=SOURCE,
            convention=f"entropy of the norm shares over log(heads); 1 is even; {what}",
        ),
        "token_norm": variable(
            (*grid, "query"), seen.first, "What a head writes at each token",
            "residual-stream units",
            "sequential", 0, convention="‖z_h W_O‖ on the first prompt", source=SOURCE,
        ),
    }  # fmt: skip
    share = variables["norm_share"].values
    best = top(share, 5)
    said = f"Heads that write most of their layer: {', '.join(label(head) for head in best)}."
    told = "No loss stands beside it: the model is not causal, or causal_prompts is 0."
    if causal_prompts and model.reads == "tokens" and predicts(capture):
        whole = [one[:causal_tokens] for one in tokens(capture)[:causal_prompts]]
        rows = [row for row, one in enumerate(whole) if len(one) > 1]
        ids = [whole[row] for row in rows]
        lost = _head_writing.loss_without(model, ids)
        variables |= averaged(
            "loss_ablation", grid, lost, "Loss added by setting the head to zero", "nats",
            "diverging", seed=seed, source="Michel et al. 1905.10650", evidence="causal",
            convention=f"ablated − intact, −log p a token, {len(ids)} prompts of up to "
            f"{causal_tokens} tokens",
        )  # fmt: skip
        ends = agreement(seen.norm_share[rows], lost, seed)
        variables |= interval(
            "share_vs_ablation", (), *ends, "Norm shares against loss without the head",
            "Spearman ρ", "diverging", -1, 1,
            convention="rank correlation over heads of the absolute means over prompts",
        )  # fmt: skip
        told = _verdict(ends, share, variables["loss_ablation"].values)
    known: dict[str, Any] = {"query": np.arange(seen.first.shape[-1])}
    if "token" in capture.coords:
        names = capture["token"].transpose("prompt", "query").values
        known["token"] = ("query", names[0][: seen.first.shape[-1]])
    uneven = [
        f"layer {layer} ({value:.2f})"
        for layer, value in enumerate(variables["head_balance"].values)
        if attending(capture)[layer] and value < 0.8
    ]
    evenness = f" Uneven layers: {', '.join(uneven)}." if uneven else ""
    return dataset(
        capture,
        variables,
        known,
        convention=what,
        top_heads=[label(head) for head in best],
        note=f"{said}{evenness} {told}",
    )


def _verdict(ends: tuple[float, float, float], share: Any, lost: Any) -> str:
    rho, lower, _ = ends
    if np.isnan(lower):
        return "INCONCLUSIVE: one prompt has no interval for the rank correlation with the loss."
    if lower > 0:
        return f"Heads that write more cost more to lose (Spearman ρ {rho:.2f})."
    return (
        f"DISAGREEMENT: heads that write more do not cost more to lose (Spearman ρ {rho:.2f}); "
        f"furthest apart, by norm and by loss: {', '.join(parting(share, lost))}."
    )
