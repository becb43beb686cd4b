"""Block influence: how much every block changes the residual stream, and what skipping it costs.

Block influence is 1 − cos between the residual stream before and after a block, averaged over
tokens: a block that hardly rotates its input is a candidate for skipping or for fusion with the
next one. Whether that is safe is another question, so the loss without the block, the change of the
last hidden state, and the loss with only its attention ablated are reported too.

Sources: Men et al., ShortGPT (2403.03853); Pei et al., FuseGPT (2411.14507).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import predicts, tokens
from headscope.analyses._runtime.options import AtLeast, require_one_text
from headscope.analyses._runtime.results import Results, require
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.attribution import _skipping
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
SUPPORTS = {"encoder", "hybrid"}
QUICK = {"causal_prompts": 2}

SOURCE = "ShortGPT 2403.03853; FuseGPT 2411.14507"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    causal_prompts: Annotated[int, AtLeast(1)] = 8,
    causal_tokens: Annotated[int, AtLeast(2)] = 512,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how far every block rotates its input, and the loss when it is skipped.

    Parameters
    ----------
    capture, model
        Capture of the prompts, for their tokens; the blocks of its model are skipped one by one.
    causal_prompts
        Prompts that are run, from the first on, at least one.
    causal_tokens
        Tokens of each prompt, from the first on.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``block_influence`` (block; 1 − cos of its input and output, 0 to
    2), ``final_change`` (block; 1 − cos of the last hidden state with and without the block, 0 to
    2), ``attention_change`` (layer; the same without the layer's heads alone) and, for models that
    predict the next token, ``skip_loss`` (block; nats a token that skipping the block adds),
    ``attention_loss`` (layer; nats a token that setting all its heads to zero adds) and
    ``influence_vs_loss`` (Spearman ρ over blocks, no interval: blocks are few), with 95 % intervals
    over prompts.
    """
    require(capture, NEEDS, "block_influence")
    require_one_text(capture.attrs.get("attention", "self"), "block_influence")
    if model.reads != "tokens":
        raise NotApplicable(
            f"capture: block_influence reads tokens, and {model.architecture} images"
        )
    prompts = [ids[:causal_tokens] for ids in tokens(capture)[:causal_prompts] if len(ids) > 1]
    if not prompts:
        raise NotApplicable(
            "prompts: all have one token, so there is none to predict; give longer ones"
        )
    module: Any = model.module
    predicting = predicts(capture) and module.get_output_embeddings() is not None
    influence, final, loss, final_heads, loss_heads = _skipping.measure(model, prompts, predicting)

    convention = f"mean over tokens of {len(prompts)} prompts of up to {causal_tokens} tokens"
    ablated = f"all heads of the layer at zero, its MLP stays; {convention}"
    cosine = ("1 − cos", "sequential", 0, 2)
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_mean(
        "block_influence", ("block",), influence, "Block influence", *cosine,
        source="ShortGPT 2403.03853",
        convention=f"1 − cos of the residual stream before and after the block; {convention}",
    )  # fmt: skip
    results.add_means(
        ("final_change", ("block",), final, "Turn of the last stream without the block", cosine,
         f"1 − cos of the stream after the last block, with and without it; {convention}"),
        ("attention_change", ("layer",), final_heads,
         "Turn of the last stream without the layer's heads", cosine, ablated),
        evidence="causal",
    )  # fmt: skip
    coords = {"block": [str(number) for number in range(model.layers)]}
    turned, lost = influence.mean(0), loss.mean(0)
    if not predicting:
        return results.dataset(
            coords,
            note=f"The block that turns its input least is {int(np.argmin(turned))}. No loss "
            "stands beside it: the model predicts no next token.",
        )
    results.add_means(
        ("skip_loss", ("block",), loss, "Loss added by skipping the block", ("nats", "diverging"),
         f"skipped − intact, −log p a token; {convention}"),
        ("attention_loss", ("layer",), loss_heads, "Loss added without the layer's heads",
         ("nats", "diverging"), ablated),
        evidence="causal",
    )  # fmt: skip
    rho = ranked(turned, lost)
    results.add(
        "influence_vs_loss", (), rho, "Block influence against loss without the block",
        "Spearman ρ", "diverging", -1, 1,
        convention=f"over {len(turned)} blocks; no interval, blocks are few",
    )  # fmt: skip
    return results.dataset(coords, _verdict(rho, turned, lost))


def _verdict(rho: float, turned: np.ndarray, lost: np.ndarray) -> Verdict:
    least, cheapest = int(np.argmin(turned)), int(np.argmin(lost))
    text = (
        f"Block {least} turns its input least; skipping it adds {amount(lost[least])} nats a "
        f"token, and the cheapest block to skip is {cheapest} ({amount(lost[cheapest])})."
    )
    if rho > 0:
        ranking = f"Influence ranks blocks like the loss does (Spearman ρ {amount(rho)})."
        return Verdict("supported", f"{text} {ranking}")
    ranking = f"Influence does not rank blocks like the loss (Spearman ρ {amount(rho)})"
    return Verdict("disagreement", f"{text} {ranking}; trust the loss.")
