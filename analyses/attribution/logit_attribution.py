"""Logit attribution: what every head writes directly towards the answer.

What a head puts into the residual stream at the question, ``z_h W_O^h``, goes through the last
norm, its scale frozen, and the unembedding: so many logits for the answer over the wrong one. With
the embeddings, what else each layer writes (MLP and biases) and the biases at the end, the heads
sum to the logit difference exactly. Each head's share is split by source token, ``A_ij v_j W_O^h``.
The same parts without the last norm sum to what the residual stream gives. A head is described by
the words that its write promotes. What a head does through later layers is not in its direct share,
so the loss without the head is reported too.

Sources: Elhage et al., A Mathematical Framework for Transformer Circuits (2021); Wang et al.,
Interpretability in the Wild (2211.00593); Gandelsman et al. (2310.05916) for layer, head and token.
"""

from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._measurements import direct_logit_attribution
from headscope.analyses._measurements.readout import Readout
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, Results, label, require, top
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.analyses.attribution import _promoted_words
from headscope.analyses.attribution._relevance_heads import add_effect, mean_ablation
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
    top_words: Annotated[int, AtLeast(1)] = 5,
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
        Prompt whose last question is followed to the tokens of its text, and to the words that
        heads promote there.
    top_words
        How many words name what a head writes.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that gradients rank first, and a random sample of the others.
    seed
        Seed of the bootstrap over prompts, and of the sample of heads.

    Returns
    -------
    Dataset with ``direct_logit`` (layer, head; logits for the answer over the wrong one, at the
    question), ``component_logit`` (component; the sums that make the difference),
    ``logit_difference`` (what the model gives), ``accumulated_logit`` (boundary; what the stream
    gives up to there), ``direct_before_norm`` and ``component_before_norm`` (the same without the
    last norm: parts of what the residual stream gives along the unembedding), ``ablation_effect``
    (layer, head; what the answer loses by mean ablation) and ``direct_vs_ablation`` (Spearman rank
    correlation over heads of absolute direct logits with it), with 95 % intervals over prompts.

    Of one prompt: ``token_contribution`` (key; logits of all heads from each token),
    ``head_token_contribution`` and ``head_token_before_norm`` (layer, head, key), and as
    coordinates the words of the largest logits of what heads write at the answer and of the stream
    there, through the last norm and without it: ``promotes``, ``promotes_before_norm`` (layer,
    head), ``stream_promotes`` and ``stream_promotes_before_norm`` (boundary).

    A norm behind the attention (Gemma) is linear with its scale frozen, too; where the model caps
    its logits, all are those before the cap. Models whose heads reach the residual stream through
    another block, or whose logits are no linear read-out of it, are refused: there, nothing sums.
    """
    require(capture, KEEP, "logit_attribution")
    encoded = ablation.encode_task(model, task)
    Between(0, len(encoded.ids) - 1).check("prompt", prompt)
    reads = Readout(model)
    parts = direct_logit_attribution.attribute(model, encoded, reads)
    lost = mean_ablation(capture, model, encoded, parts.heads, exhaustive=exhaustive, seed=seed)
    gap = float(np.abs(parts.total() - parts.logit).max())
    paired = lost.metric == "logit_difference"

    against = "the wrong answers" if paired else "the mean of the vocabulary"
    followed = f"logit of the answer − {against}, {len(encoded)} prompts of {task.name}"
    cap = "; before the soft cap of the logits" if parts.capped else ""
    frozen = f"z·W_O at the question, through the norms with their scales frozen; {followed}{cap}"
    opened = direct_logit_attribution.of_prompt(reads, encoded, prompt)
    by_token = f"A·v·W_O by source token, prompt {prompt}, its last question; {against}{cap}"
    logits, unscaled = ("logits", "diverging"), ("unscaled logits", "diverging")
    without = f"along the unembedding, without the last norm; {followed}"
    results = Results(capture, seed=seed, source=SOURCE, convention=frozen)
    results.add_means(
        ("direct_logit", GRID, parts.heads, f"Direct logits for the answer of {task.name}", logits),
        ("component_logit", ("component",), parts.components(), "Direct logits by component",
         logits, f"they sum to the difference within {gap:.2g}; {frozen}"),
        ("logit_difference", (), parts.logit, "What the components sum to", logits, followed + cap),
        ("direct_before_norm", GRID, parts.before.heads,
         "Direct contributions before the last norm", unscaled, f"z·W_O {without}"),
        ("component_before_norm", ("component",), parts.before.components(),
         "Contributions before the last norm by component", unscaled,
         f"they sum to what the residual stream gives {without}"),
        ("accumulated_logit", ("boundary",), parts.accumulated(),
         "Logits of the residual stream up to each layer", logits,
         f"embeddings and all layers below, without the biases at the end; {frozen}"),
    )  # fmt: skip
    results.add_all(
        ("token_contribution", ("key",), opened.after.sum((0, 1)), "Direct logits by source token",
         logits, f"sum over heads; {by_token}"),
        ("head_token_contribution", (*GRID, "key"), opened.after,
         "Direct logits by head and source token", logits, by_token),
        ("head_token_before_norm", (*GRID, "key"), opened.before,
         "Contributions before the last norm by head and source token", unscaled,
         f"{by_token}; without the last norm"),
    )  # fmt: skip
    add_effect(results, lost)
    ends = agreement(parts.heads, lost.values, seed)
    results.add_interval(
        "direct_vs_ablation", (), ends, "Direct logits against mean ablation", "Spearman ρ",
        "diverging", -1, 1,
        convention=f"{OVER_HEADS}; ablation: {lost.metric.replace('_', ' ')} lost, all paths, of "
        f"{lost.heads}",
    )  # fmt: skip
    direct = results["direct_logit"].values
    best = top(direct, 5)
    words = _promoted_words.coordinates(reads, opened.cache, top_words)
    promote = "; ".join(f"{label(head)} {words['promotes'][1][head]}" for head in best[:3])
    return results.dataset(
        {
            "component": list(COMPONENTS),
            "boundary": np.arange(model.layers + 1),
            "key": np.arange(len(opened.ids)),
            "token": ("key", model.to_str_tokens(opened.ids)),
            **words,
        },
        _verdict(ends, most_different(direct, lost.values.mean(0))),
        f"Words that the first heads promote at the answer of prompt {prompt}: {promote}.",
        convention=followed,
        top_heads=[label(head) for head in best],
        sum_gap=gap,
    )


def _verdict(ends: tuple[float, float, float], furthest: list[str]) -> Verdict:
    rho, lower, _ = ends
    differing = (
        f"(Spearman ρ {amount(rho)}); they part most at {', '.join(furthest)}, by direct logits "
        "and by ablation: a head that works through later layers writes little to the answer "
        "itself."
    )
    return interval_verdict(
        lower,
        f"Direct logits rank heads like mean ablation does {differing}",
        f"Direct logits do not rank heads like mean ablation {differing}",
        f"One prompt has no interval for the rank correlation {differing}",
    )
