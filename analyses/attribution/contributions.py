"""Contributions: how much of its layer's output each head writes, token by token.

The output of a layer's attention is the sum of its heads, ``o = Σ_h z_h W_O^h`` (and a bias). Per
token, ``‖z_h W_O^h‖`` says how much a head writes, and ``⟨z_h W_O^h, o⟩ / ‖o‖²`` what share of the
sum that is: shares sum to 1, and are negative where a head writes against the others. In a mixture
of attention heads these norms rank the heads that a token is routed to; how evenly they are spread
is the load balance. Size is not importance, so the loss without the head is measured too; in a
model of many heads, only for those that write most, those that gradients rank first, and a random
sample.

Sources: Jin et al., MoH: Multi-Head Attention as Mixture-of-Head Attention (2410.11842); Zhang et
al., Mixture of Attention Heads (2210.05144); Kobayashi et al., Attention is Not Only a Weight
(2004.10102).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import screening
from headscope.analyses._interventions.next_token_loss import every_next_token, predicts, tokens
from headscope.analyses._measurements import head_outputs
from headscope.analyses._runtime.options import AtLeast, require_one_text
from headscope.analyses._runtime.results import GRID, SHARE, Results, attending, label, require, top
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.analyses.attribution import _head_writing
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
KEEP = ("z",)
SUPPORTS = {"encoder", "hybrid"}
QUICK = {"causal_prompts": 2}

SOURCE = "MoH 2410.11842; Mixture of Attention Heads 2210.05144"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    causal_prompts: Annotated[int, AtLeast(0)] = 4,
    causal_tokens: Annotated[int, AtLeast(2)] = 128,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the share of its layer's output that every head writes, and the loss without it.

    Parameters
    ----------
    capture, model
        Capture of the prompts with the kept ``z``, which the output projections of its model turn
        into what heads write.
    causal_prompts
        Prompts of the causal check, the first of more than one token; 0 leaves it out.
    causal_tokens
        Tokens of each prompt in the causal check, from the first on.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that write most or that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``norm_share`` (layer, head; the head's norm over the sum of its
    layer's norms, mean over tokens; 0 to 1), ``output_share`` (layer, head; its projection on the
    layer's output, over that output's squared length; sums to 1 where there is no bias),
    ``head_balance`` (layer; entropy of the norm shares of a token over its largest, mean over
    tokens; 1 is even), ``token_norm`` (layer, head, query; ``‖z W_O‖`` on the first prompt, in
    units of the residual stream) and, for models that predict the next token, ``loss_ablation``
    (layer, head; nats a token lost with the head at zero) and ``share_vs_ablation`` (Spearman ρ),
    with 95 % intervals over prompts.
    """
    require(capture, KEEP, "contributions")
    require_one_text(capture.attrs.get("attention", "self"), "contributions")
    norm_share, output_share, balance, first = _head_writing.measure(
        capture, head_outputs.output_weights(model)
    )

    convention = f"mean over tokens of {capture.sizes['prompt']} prompts"
    results = Results(capture, seed=seed, source=SOURCE)
    results.add_means(
        ("norm_share", GRID, norm_share, "Share of the norms that a layer's heads write", SHARE,
         f"‖z_h W_O‖ / Σ_h ‖z_h W_O‖ of each token; {convention}"),
        ("output_share", GRID, output_share, "Share of the layer's output", ("share", "diverging"),
         "⟨z_h W_O, o⟩ / ‖o‖² of each token, o = Σ_h z_h W_O; negative: against the "
         f"others; {convention}", "Kobayashi et al. 2004.10102"),
        ("head_balance", ("layer",), balance, "How evenly heads share a token", SHARE,
         f"entropy of the norm shares over log(heads); 1 is even; {convention}"),
    )  # fmt: skip
    results.add(
        "token_norm", (*GRID, "query"), first, "What a head writes at each token",
        "residual-stream units", "sequential", 0, convention="‖z_h W_O‖ on the first prompt",
    )  # fmt: skip
    verdict, note = None, _note(capture, results)
    whole: list[list[int]] = []
    if causal_prompts and model.reads == "tokens" and predicts(capture):
        whole = [ids[:causal_tokens] for ids in tokens(capture)]
    rows = [row for row, ids in enumerate(whole) if len(ids) > 1][:causal_prompts]
    if rows:
        texts = [whole[row] for row in rows]
        most = top(results["norm_share"].values, screening.FIRST)
        chosen = screening.screen(
            model,
            every_next_token(texts),
            "log_probability",
            also=most,
            exhaustive=exhaustive,
            seed=seed,
        )
        lost = _head_writing.loss_without(model, texts, chosen.heads)
        results.add_mean(
            "loss_ablation", GRID, lost, "Loss added by setting the head to zero", "nats",
            "diverging", source="Michel et al. 1905.10650", evidence="causal",
            convention=f"ablated − intact, −log p a token, {chosen.convention}; {len(rows)} "
            f"prompts of up to {causal_tokens} tokens",
        )  # fmt: skip
        ends = agreement(norm_share[rows], lost, seed)
        results.add_interval(
            "share_vs_ablation", (), ends, "Norm shares against loss without the head",
            "Spearman ρ", "diverging", -1, 1,
            convention=OVER_HEADS,
        )  # fmt: skip
        verdict = _verdict(ends, results["norm_share"].values, results["loss_ablation"].values)
    else:
        note += (
            " No loss stands beside it: the model is not causal, no prompt has a next token, or "
            "causal_prompts is 0."
        )
    length = first.shape[-1]
    coords: dict[str, Any] = {"query": np.arange(length)}
    if "token" in capture.coords:
        token_texts = capture["token"].transpose("prompt", "query").values[0]
        coords["token"] = ("query", token_texts[:length])
    return results.dataset(
        coords, verdict, note, convention=convention, top_heads=_largest(results)
    )


def _largest(results: Results) -> list[str]:
    return [label(head) for head in top(results["norm_share"].values, 5)]


def _note(capture: xr.Dataset, results: Results) -> str:
    note = f"Heads that write most of their layer: {', '.join(_largest(results))}."
    uneven = [
        f"layer {layer} ({amount(value)})"
        for layer, value in enumerate(results["head_balance"].values)
        if attending(capture)[layer] and value < 0.8
    ]
    return f"{note} Uneven layers: {', '.join(uneven)}." if uneven else note


def _verdict(ends: tuple[float, float, float], share: Any, lost: Any) -> Verdict:
    rho, lower, _ = ends
    return interval_verdict(
        lower,
        f"Heads that write more cost more to lose (Spearman ρ {amount(rho)}).",
        f"Heads that write more do not cost more to lose (Spearman ρ {amount(rho)}); furthest "
        f"apart, by norm and by loss: {', '.join(most_different(share, lost))}.",
        "One prompt has no interval for the rank correlation with the loss.",
    )
