"""Logit attribution: what every head writes straight towards the answer.

What a head puts into the residual stream at the question, ``z_h W_O^h``, goes through the last
norm, its scale frozen, and the unembedding: so many logits for the answer over the wrong one. With
the embeddings, what else each layer writes (MLP and biases) and the biases at the end, the heads
sum to the logit difference exactly. Each head's share is cut by the token that it is from,
``A_ij v_j W_O^h``. What a head does through later layers is not in its direct
share, so the loss without the head stands beside it as a correlation.

Sources: Elhage et al., A Mathematical Framework for Transformer Circuits (2021); Wang et al.,
Interpretability in the Wild (2211.00593); Gandelsman et al. (2310.05916) for layer, head and token.
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.screening import FIRST, screen
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import Results, label, require, top
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, parting
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 32
SUPPORTS = {"hybrid"}

SOURCE = "Elhage et al. 2021; Wang et al. 2211.00593"
COMPONENTS = ("embeddings", "all heads", "MLPs and biases", "last biases")


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    prompt: Annotated[int, AtLeast(0)] = 0,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Split the logit difference of a task into what every head and layer writes directly.

    Parameters
    ----------
    capture, model, task
        Capture of the task whose answers are followed, with the kept ``z``, whose means take the
        heads' place in the ablation. Without wrong answers the mean logit of the vocabulary stands
        in their place.
    prompt
        Prompt whose last question is followed to the tokens of its text.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``direct_logit`` (layer, head; logits for the answer over the wrong
    one, at the question), ``component_logit`` (component; the sums that make the difference),
    ``logit_difference`` (what the model gives), ``direct_before_norm`` (layer, head; the same
    without the last norm, parts of what the residual stream gives along the unembedding),
    ``token_contribution`` (key; logits of all heads from each token of one prompt, its heads and
    tokens apart in ``head_token_contribution``: layer, head, key) and ``direct_vs_ablation``
    (Spearman rank correlation over heads of absolute direct logits and the logit difference lost
    under mean ablation), with 95 % intervals over prompts.

    A norm behind the attention (Gemma) is linear with its scale frozen, too; where the model caps
    its logits, all are those before the cap. Models whose heads reach the residual stream through
    another block, or whose logits are no linear read-out of it, are refused: there, nothing sums.
    """
    require(capture, KEEP, "logit_attribution")
    encoded = ablation.encode_task(model, task)
    Between(0, len(encoded.ids) - 1).check("prompt", prompt)
    parts = direct_logit_attribution.attribute(model, encoded)
    paired = all(question.wrong_ids for row in encoded.questions for question in row)
    metric = "logit_difference" if paired else "log_probability"
    intact = ablation.evaluate(model, encoded, (), metric)
    mean = ablation.mean_z(capture)
    most = top(np.abs(parts.heads.mean(0)), FIRST)
    chosen = screen(model, encoded, metric, (mean,), also=most, exhaustive=exhaustive, seed=seed)
    ablated = ablation.ablate_each_head(model, encoded, metric, mean, heads=chosen.heads)
    lost = intact[:, None, None] - ablated
    gap = float(np.abs(parts.total() - parts.logit).max())

    against = "the wrong answers" if paired else "the mean of the vocabulary"
    what = f"logit of the answer − {against}, {len(intact)} prompts of {task.name}"
    cap = "; before the soft cap of the logits" if parts.capped else ""
    frozen = f"z·W_O at the question, through the norms with their scales frozen; {what}{cap}"
    ids, shares = direct_logit_attribution.of_prompt(model, encoded, prompt)
    one = f"A·v·W_O by source token, prompt {prompt}, its last question; {against}{cap}"
    sums = np.stack(
        [parts.embedding, np.nansum(parts.heads, axis=(1, 2)), parts.rest.sum(1), parts.bias],
        axis=1,
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=frozen)
    results.add_means(
        ("direct_logit", ("layer", "head"), parts.heads,
         f"Direct logits for the answer of {task.name}", ("logits", "diverging")),
        ("component_logit", ("component",), sums, "Direct logits by component",
         ("logits", "diverging"), f"they sum to the difference within {gap:.2g}; {frozen}"),
        ("logit_difference", (), parts.logit, "What the components sum to", ("logits", "diverging"),
         what + cap),
        ("direct_before_norm", ("layer", "head"), parts.heads_before_norm,
         "Direct contributions before the last norm", ("unscaled logits", "diverging"),
         f"z·W_O along the unembedding, without the last norm; {what}"),
    )  # fmt: skip
    results.add_all(
        ("token_contribution", ("key",), shares.sum((0, 1)), "Direct logits by source token",
         ("logits", "diverging"), f"sum over heads; {one}"),
        ("head_token_contribution", ("layer", "head", "key"), shares,
         "Direct logits by head and source token", ("logits", "diverging"), one),
    )  # fmt: skip
    ends = agreement(parts.heads, lost, seed)
    results.add_interval(
        "direct_vs_ablation", (), ends, "Direct logits against mean ablation", "Spearman ρ",
        "diverging", -1, 1,
        convention=f"{OVER_HEADS}; ablation: {metric.replace('_', ' ')} lost, all paths, of "
        f"{chosen.convention}",
    )  # fmt: skip
    direct = results["direct_logit"].values
    return results.dataset(
        {
            "component": list(COMPONENTS),
            "key": np.arange(len(ids)),
            "token": ("key", model.words(ids)),
        },
        _verdict(ends, parting(direct, lost.mean(0))),
        convention=what,
        top_heads=[label(head) for head in top(direct, 5)],
        sum_gap=gap,
    )


def _verdict(ends: tuple[float, float, float], furthest: list[str]) -> Verdict:
    rho, lower, _ = ends
    apart = (
        f"(Spearman ρ {amount(rho)}); they part most at {', '.join(furthest)}, by direct logits "
        "and by ablation: a head that works through later layers writes little to the answer "
        "itself."
    )
    return interval_verdict(
        lower,
        f"Direct logits rank heads like mean ablation does {apart}",
        f"Direct logits do not rank heads like mean ablation {apart}",
        f"One prompt has no interval for the rank correlation {apart}",
    )
