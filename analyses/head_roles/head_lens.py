"""Head lens: what the output of one head alone says about the next token.

What a head writes, sent through the final norm and the unembedding, gives words (the untrained
lens). That is readable only where the head writes in the basis of the vocabulary; what later layers
turn first needs a map of its own. The trained lens is that map: linear, fitted by ridge regression
to the end of the residual stream, and judged on prompts that it has not seen, against the same fit
to targets of other positions and against the mean prediction. Behind every layer the same two
lenses read the whole stream (logit lens, tuned lens). A lens says what can be read from a head, not
what the model reads: the loss without the head is reported beside it.

The first words of a trained lens are mostly those of the mean prediction, whatever the head: it is
fitted to the deviation from it. So its words are those that it raises most over the mean prediction
(lift in log probability), of the words that it holds plausible.

Sources: Sakarvadia et al., Attention Lens (2310.16270); Belrose et al., Eliciting Latent
Predictions from Transformers with the Tuned Lens (2303.08112); nostalgebraist, interpreting GPT:
the logit lens (2020). Lift over plausible words: Li et al., Contrastive Decoding (2210.15097).
"""

from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.next_token_loss import every_next_token, tokens
from headscope.analyses._interventions.screening import FIRST, screen
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import (
    GRID,
    SHARE,
    Results,
    first_few,
    named,
    require,
    top,
)
from headscope.analyses._runtime.verdict import Verdict, interval_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.analyses._stats.rank_correlation import OVER_HEADS, agreement, most_different
from headscope.analyses.head_roles import _prompt_folds
from headscope.analyses.head_roles._head_lenses import Lens, judge_heads, judge_streams
from headscope.analyses.head_roles._linear_lens import Judge
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ()
KEEP = ("z", "resid")
SUPPORTS = {"hybrid"}
QUICK = {"causal_prompts": 2}

ATTENTION_LENS, TUNED_LENS = "Attention Lens 2310.16270", "Tuned Lens 2303.08112"
NATS = ("nats", "sequential", 0)


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    folds: Annotated[int, AtLeast(2)] = 5,
    positions: Annotated[int, AtLeast(1)] = 4,
    ridge: Annotated[float, AtLeast(0)] = 0.1,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    causal_tokens: Annotated[int, AtLeast(2)] = 128,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Read every head by an untrained and a trained lens, on prompts the latter has not seen.

    Parameters
    ----------
    capture, model
        Capture of at least two texts with the kept ``z`` and ``resid``, and its model.
    folds
        Parts that the prompts are cut into; a prompt is judged by a lens that is fitted to all
        positions of the other parts.
    positions
        Positions of a prompt at which lenses are judged, drawn at random.
    ridge
        Penalty of the regression, over the mean variance of what is regressed on.
    causal_prompts
        Prompts of the causal check, the first of more than one token; 0 leaves it out.
    causal_tokens
        Tokens of each prompt in the causal check, from the first on.
    exhaustive
        Ablate every head, whatever their number. Without it, in a model of more than 64 heads:
        those that the lens or gradients rank first, and a random sample of the others.
    seed
        Seed of the folds, the positions, the shuffled targets, the sample of heads and the
        bootstrap.

    Returns
    -------
    Dataset with ``untrained_kl``, ``trained_kl`` and ``shuffled_kl`` (layer, head; KL divergence of
    the lens from the model's own prediction, nats), ``untrained_top1``, ``trained_top1`` and
    ``shuffled_top1`` (layer, head; share of positions with the model's first word), ``lens_gain``
    (layer, head; shuffled − trained, nats), ``mean_prediction_kl`` and ``mean_prediction_top1`` (of
    the mean prediction, which needs no head), ``stream_untrained_kl`` and ``stream_trained_kl``
    (layer; of the whole stream behind a layer), ``loss_ablation`` (layer, head; nats a token lost
    with the head at its mean) and ``gain_vs_ablation`` (Spearman ρ), with 95 % intervals over
    prompts. The coordinates ``untrained_words`` and ``trained_words`` (layer, head) name up to four
    words of a head, the foremost first: those that the untrained lens most often puts first, and
    those that the trained one raises most over the mean prediction (lift in log probability, mean
    over the judged positions; 0 where a word has less than a hundredth of the largest).
    """
    require(capture, KEEP, "head_lens", ("self",))
    model.check_predicts()
    cut = _prompt_folds.cut(capture, folds, seed)
    judge = Judge(model, capture, cut, positions, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(judge.final), generator=generator)
    lenses = judge_heads(model, capture, judge, order, ridge)
    constant = judge.constant()

    convention = (
        f"{len(judge.judged)} positions of {capture.sizes['prompt']} prompts, each judged by a "
        f"lens of other prompts ({len(cut.prompt)} positions in {cut.count} folds)"
    )
    if getattr(model.module.config, "final_logit_softcapping", None):
        convention += "; before the soft cap of the logits"
    readings = {
        "untrained": f"z·W_O through the final norm and the unembedding; {convention}",
        "trained": "ridge regression of the end of the stream, behind its norm, on z; through the "
        f"unembedding its logits are added to those of the mean prediction; {convention}",
        "shuffled": f"the same regression on the ends of the stream at other positions; "
        f"{convention}",
    }
    results = Results(capture, seed=seed, source=ATTENTION_LENS)
    for name, reading in readings.items():
        lens, first = lenses[name], f"First word of the {name} lens is the model's"
        results.add_means(
            (f"{name}_kl", GRID, lens.distance, f"KL of the {name} lens", NATS, reading),
            (f"{name}_top1", GRID, lens.agrees, first, SHARE, reading),
        )
    gain = lenses["shuffled"].distance - lenses["trained"].distance
    results.add_means(
        ("lens_gain", GRID, gain, "What a trained lens reads from the head",
         ("nats", "diverging"), f"KL with shuffled targets − KL; {readings['trained']}"),
        ("mean_prediction_kl", (), constant.distance.numpy(), "KL of the mean prediction", NATS,
         f"the mean over the other folds at every position; {convention}"),
        ("mean_prediction_top1", (), constant.agrees.numpy(),
         "First word of the mean prediction is the model's", SHARE,
         f"the mean over the other folds at every position; {convention}"),
    )  # fmt: skip
    streams = judge_streams(model, capture, judge, ridge)
    results.add_means(
        ("stream_untrained_kl", ("layer",), streams[0], "KL of the logit lens", NATS,
         f"the stream behind the layer through final norm and unembedding; {convention}",
         "nostalgebraist 2020"),
        ("stream_trained_kl", ("layer",), streams[1], "KL of the tuned lens", NATS,
         f"as the trained lens, on the stream behind the layer and the final norm; {convention}"),
        source=TUNED_LENS,
    )  # fmt: skip
    verdict = _readable(gain)
    lost = _ablate(model, capture, results, gain, causal_prompts, causal_tokens, exhaustive)
    if lost is not None:
        verdict &= lost
    return results.dataset(
        _promoted_texts(model, lenses), verdict, _note(results, constant), convention=convention
    )


def _ablate(
    model: Model, capture: xr.Dataset, results: Results, gain: Array, prompts: int, most: int,
    exhaustive: bool,
) -> Verdict | None:  # fmt: skip
    """Add the loss without each head, and conclude whether the lens ranks heads as it does."""
    whole = [ids[:most] for ids in tokens(capture)]
    rows = [row for row, ids in enumerate(whole) if len(ids) > 1][:prompts]
    if not rows:
        return None
    task, metric = every_next_token([whole[row] for row in rows]), "log_probability"
    mean = ablation.mean_z(capture)
    chosen = screen(
        model, task, metric, (mean,), also=top(gain.mean(0), FIRST), exhaustive=exhaustive,
        seed=results.seed,
    )  # fmt: skip
    clean = ablation.evaluate(model, task, (), metric)
    lost = clean[:, None, None] - ablation.ablate_each_head(
        model, task, metric, mean, heads=chosen.heads
    )
    results.add_mean(
        "loss_ablation", GRID, lost, "Loss added by setting the head to its mean", "nats",
        "diverging", source="Michel et al. 1905.10650", evidence="causal",
        convention=f"ablated − intact, −log p a token, {chosen.convention}; {len(rows)} prompts of "
        f"up to {most} tokens",
    )  # fmt: skip
    ends = agreement(gain[rows], lost, results.seed)
    results.add_interval(
        "gain_vs_ablation", (), ends, "What the lens reads against loss without the head",
        "Spearman ρ", "diverging", -1, 1, convention=OVER_HEADS,
    )  # fmt: skip
    rho, lower, _ = ends
    differing = ", ".join(most_different(gain.mean(0), lost.mean(0)))
    return interval_verdict(
        lower,
        f"Heads from which more can be read cost more to lose (Spearman ρ {amount(rho)}).",
        f"Heads from which more can be read do not cost more to lose (Spearman ρ {amount(rho)}); "
        f"furthest apart, by lens and by loss: {differing}.",
        "One prompt has no interval for the rank correlation with the loss.",
    )


def _readable(gain: Array) -> Verdict:
    """Conclude which heads a trained lens reads, from its gain over shuffled targets."""
    measured = int((~np.isnan(gain).any(0)).sum())
    if len(gain) < LEAST_PROMPTS:
        return Verdict("too_few", f"{len(gain)} of {LEAST_PROMPTS} prompts to judge a lens on.")
    readable = exceeds_zero(gain)
    if not readable.any():
        return Verdict("not_supported", "From no head a trained lens reads more than by chance.")
    best = named(np.where(readable, gain.mean(0), np.nan), readable)
    return Verdict(
        "supported",
        f"From {readable.sum()} of {measured} heads a trained lens reads more of the prediction "
        f"than with shuffled targets: {first_few(best)}.",
    )


def _note(results: Results, constant: Any) -> str:
    mean = float(constant.distance.mean())
    nearer = {
        name: int((results[f"{name}_kl_upper"].values < mean).sum())
        for name in ("untrained", "trained")
    }
    return (
        f"Nearer to the model's prediction than the mean prediction ({amount(mean)} nats): the "
        f"trained lens of {nearer['trained']} heads, the untrained one of {nearer['untrained']}."
    )


def _promoted_texts(model: Model, lenses: dict[str, Lens]) -> dict[str, Any]:
    """Return the tokens that each lens reads from every head, as coordinates."""
    meaning = {
        "untrained": "Words that the untrained lens of the head most often puts first",
        "trained": "Words that the trained lens of the head raises most over the mean prediction "
        "(lift in log probability)",
    }
    named: dict[str, Any] = {}
    for name, title in meaning.items():
        grid = np.full(lenses[name].distance.shape[1:], "", dtype=object)
        for head, words in lenses[name].words.items():
            grid[head] = ", ".join(
                word.strip() or repr(word) for word in model.to_str_tokens(words)
            )
        named[f"{name}_words"] = GRID, grid.astype(str), {"long_name": title}
    return named
