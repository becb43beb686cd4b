"""Block influence: how much every block changes what passes through it, and what skipping it costs.

Block influence is 1 − cos between the residual stream before and after a block, averaged over
tokens: a block that hardly turns its input is a candidate to be skipped or fused with the next one.
Whether it may be is another question, so beside it stand what the loss becomes without the block,
by how much the last hidden state turns without it, and the same loss with only its attention taken
out.

Sources: Men et al., ShortGPT (2403.03853); Pei et al., FuseGPT (2411.14507).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import predicts, tokens
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, require, variable
from headscope.analyses._stats.rank_correlation import ranked
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ()

SOURCE = "ShortGPT 2403.03853; FuseGPT 2411.14507"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    causal_prompts: int = 8,
    causal_tokens: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measure how far every block turns its input, and the loss when it is skipped.

    Parameters
    ----------
    capture
        Capture of the prompts, for their tokens.
    model
        Model that was captured; its blocks are skipped one at a time.
    causal_prompts
        Prompts that are run, from the first on, at least one.
    causal_tokens
        Tokens of each prompt, from the first on.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) prompts.

    Returns ------- Dataset with ``block_influence`` (block; 1 − cos of its input and output, 0 to
    2), ``final_change`` (block; 1 − cos of the last hidden state with and without the block, 0 to
    2), ``attention_change`` (layer; the same without the layer's heads alone) and, for models that
    predict the next token, ``skip_loss`` (block; nats a token that skipping the block adds),
    ``attention_loss`` (layer; nats a token that setting all its heads to zero adds) and
    ``influence_vs_loss`` (Spearman ρ over blocks, no interval: blocks are few), with 95 % intervals
    over prompts.

    Raises
    ------
    NotApplicable
        When the capture holds no token ids, or the blocks of the model are not found.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> execute("block_influence", model, [list(range(20))])["block_influence"].dims
    ('block',)
    """
    from headscope.analyses.attribution import _skipping

    options.at_least("causal_prompts", causal_prompts, 1)
    options.at_least("causal_tokens", causal_tokens, 2)
    require(capture, NEEDS, "block_influence")
    options.one_text(capture.attrs.get("attention", "self"), "block_influence")
    if model.reads != "tokens":
        raise NotApplicable(
            f"capture: block_influence reads tokens, and {model.architecture} images"
        )
    ids = [one[:causal_tokens] for one in tokens(capture)[:causal_prompts] if len(one) > 1]
    if not ids:
        raise NotApplicable(
            "prompts: all have one token, so there is none to predict; give longer ones"
        )
    module: Any = model.module
    losing = predicts(capture) and module.get_output_embeddings() is not None
    seen = _skipping.measure(model, ids, losing, progress)

    what = f"mean over tokens of {len(ids)} prompts of up to {causal_tokens} tokens"
    variables: dict[str, xr.Variable] = {
        **averaged(
            "block_influence", ("block",), seen.turned, "Block influence", "1 − cos", "sequential",
            0, 2, seed=seed, source="ShortGPT 2403.03853",
            convention=f"1 − cos of the residual stream before and after the block; {what}",
        ),
        **averaged(
            "final_change", ("block",), seen.final, "Turn of the last stream without the block",
            "1 − cos", "sequential", 0, 2, seed=seed, source=SOURCE, evidence="causal",
            convention=f"1 − cos of the stream after the last block, with and without it; {what}",
        ),
        **averaged(
            "attention_change", ("layer",), seen.final_heads,
            "Turn of the last stream without the layer's heads", "1 − cos", "sequential", 0, 2,
            seed=seed, source=SOURCE, evidence="causal",
            convention=f"all heads of the layer at zero, its MLP stays; {what}",
        ),
    }  # fmt: skip
    best = _least(seen.turned.mean(0))
    note = f"The block that turns its input least is {best}. No loss stands beside it: the model "
    note += "predicts no next token."
    if losing:
        variables |= averaged(
            "skip_loss", ("block",), seen.loss, "Loss added by skipping the block", "nats",
            "diverging", seed=seed, source=SOURCE, evidence="causal",
            convention=f"skipped − intact, −log p a token; {what}",
        )  # fmt: skip
        variables |= averaged(
            "attention_loss", ("layer",), seen.loss_heads, "Loss added without the layer's heads",
            "nats", "diverging", seed=seed, source=SOURCE, evidence="causal",
            convention=f"all heads of the layer at zero, its MLP stays; {what}",
        )  # fmt: skip
        turned, lost = seen.turned.mean(0), seen.loss.mean(0)
        rho = ranked(turned, lost)
        variables["influence_vs_loss"] = variable(
            (), rho, "Block influence against loss without the block", "Spearman ρ", "diverging",
            -1, 1, convention=f"over {len(turned)} blocks; no interval, blocks are few",
        )  # fmt: skip
        note = _verdict(rho, turned, lost)
    coords: dict[str, Any] = {"block": [str(number) for number in range(model.layers)]}
    return dataset(capture, variables, coords, convention=what, note=note)


def _least(values: np.ndarray) -> int:
    return int(np.argmin(values))


def _verdict(rho: float, turned: np.ndarray, lost: np.ndarray) -> str:
    least, cheapest = _least(turned), _least(lost)
    said = (
        f"Block {least} turns its input least; skipping it adds {lost[least]:.3g} nats a token, "
        f"and the cheapest block to skip is {cheapest} ({lost[cheapest]:.3g})."
    )
    if rho > 0:
        return f"{said} Influence ranks blocks like the loss does (Spearman ρ {rho:.2f})."
    return (
        f"DISAGREEMENT: {said} Influence does not rank blocks like the loss (Spearman ρ "
        "{rho:.2f}); trust the loss."
    )
