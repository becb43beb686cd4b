"""Reliability: how far the importance of heads can be trusted.

Every method that ranks heads is asked four things. Does it agree with the others (rank correlation
over heads)? Would other prompts say the same (split-half reliability, stepped up by Spearman and
Brown's formula)? Would other names and templates of the same task (a second draw)? And is there
more than where there is nothing to find: with every prompt asked for the answer of another one, and
in a model of the same config with random weights? A head is called important only where the
interval of its mean ablation lies above what the largest head reaches in both.

Sources: Michel et al. (1905.10650); Spearman (1910) and Brown (1910); Adebayo et al., Sanity Checks
for Saliency Maps (1810.03292).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, interval, label, top, variable
from headscope.analyses._stats.rank_correlation import agreement, matrix, parting, split_half
from headscope.analyses.head_importance._nulls import important, shuffled, threshold, untrained

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 16

SOURCE = "Michel et al. 1905.10650"
RETEST = "Spearman 1910; Brown 1910"
SANITY = "Adebayo et al. 1810.03292"
CONDITIONS = ("largest head", "shuffled answers", "random weights")
CAUSAL = ("zero ablation", "mean ablation", "noising", "denoising")
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: str = "task",
    paraphrase: bool = True,
    random_weights: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compare the methods that rank heads, with each other, with themselves and with nothing.

    Parameters
    ----------
    capture
        Capture of the task with the kept ``z``.
    model
        Model that was captured.
    task
        Task whose metric is followed.
    metric
        As in ``importance``. Gradients of accuracy follow the log-probability of the answers.
    paraphrase
        Whether a second draw of the task is made: other names, places and templates. A task of your
        own file cannot be drawn again.
    random_weights
        Whether a model of the same config with random weights is measured; it needs as much memory
        as the model itself.
    seed
        Seed of the bootstrap, the splits, the shuffled answers and the random weights.
    progress
        Called with (done, total) steps.

    Returns ------- Dataset with ``rank_agreement`` (one, other; Spearman ρ over heads between
    methods), ``retest`` (ranking; split-half reliability), ``paraphrase_agreement`` (ranking; ρ
    with the second draw), ``null_level`` (condition; the largest mean ablation, and what the
    largest head reaches under each null; the nulls without an interval), ``margin`` (layer, head;
    the lower end of the mean ablation over the larger null, positive for an important head) and
    ``untrained_agreement`` (ρ between gate gradient and zero ablation in the model with random
    weights). ``important_heads`` in the attributes names the heads of positive margin.

    Raises
    ------
    HeadscopeError
        When the capture lacks ``z``, the metric is unknown, or no model can be made of the config.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> few = {"paraphrase": False, "random_weights": False}
    >>> execute("reliability", model, n=2, options=few)["rank_agreement"].dims
    ('one', 'other')
    """
    from headscope.analyses._interventions import ablation
    from headscope.analyses._interventions.metrics import METRICS, UNITS
    from headscope.analyses._runtime.results import require
    from headscope.analyses.head_importance._method_scores import losses, scores
    from headscope.probes import capture as take
    from headscope.probes.prompts import tasks

    options.one_of("metric", metric, METRICS)
    require(capture, KEEP, "reliability")
    name = task.metric if metric == "task" else metric
    again = paraphrase and task.name in tasks.names()
    total, done = 2 + again + random_weights, 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    methods, left_out = scores(model, task, capture, name)
    step()
    asked = ablation.encode_task(model, task).questions
    levels = {"shuffled answers": _null(capture, model, task, name, shuffled(asked, seed), seed)}
    step()
    second: dict[str, Array] = {}
    if again:
        drawn = tasks.make(task.name, model.tokenizer, n=len(task), seed=task.seed + 1)
        other = take(model, drawn, stats=(), keep=KEEP)
        second, _ = scores(model, drawn, other, name)
        step()
    untold = (float("nan"),) * 3
    if random_weights:
        blank = untrained(model, seed)
        cap = take(blank, task, stats=(), keep=KEEP)
        levels["random weights"] = _null(cap, blank, task, name, None, seed)
        untold = agreement(*losses(blank, task, name), seed)
        step()

    units, count = UNITS[name], len(task)
    what = f"{name.replace('_', ' ')} on {count} prompts of {task.name}"
    mean = averaged("mean", ("layer", "head"), methods["mean ablation"], "", units, seed=seed)
    least = max(levels.values())
    found = important(mean["mean_lower"].values, least)
    [best] = top(mean["mean"].values, 1)
    largest = [mean[key].values[best] for key in ("mean", "mean_lower", "mean_upper")]
    bars = np.full((3, len(CONDITIONS)), np.nan)
    bars[:, 0] = largest
    for place, key in enumerate(CONDITIONS[1:], start=1):
        bars[:, place] = levels.get(key, np.nan)
    names = list(methods)
    table = matrix(methods, seed)
    retest = np.array([split_half(each, seed) for each in methods.values()]).T
    variables: dict[str, xr.Variable] = {
        **interval(
            "rank_agreement", ("one", "other"), *table, "Agreement of methods on the heads",
            "Spearman ρ", "diverging", -1, 1, source=SOURCE,
            convention=f"rank correlation over heads of the absolute means over prompts; {what}",
        ),
        **interval(
            "retest", ("ranking",), *retest, "Test–retest reliability", "2r / (1 + r)", "diverging",
            -1, 1, source=RETEST,
            convention="rank correlation r over heads between random halves of the prompts, "
            f"stepped up to all of them; mean and central 95 % of 50 splits; {what}",
        ),
        **interval(
            "null_level", ("condition",), *bars, "Mean ablation against where there is nothing",
            units, "diverging", source=SANITY, evidence="causal",
            convention="largest head with its interval; nulls: 95th percentile over resamples of "
            f"the largest head's mean ablation; {what}",
        ),
        "margin": variable(
            ("layer", "head"), mean["mean_lower"].values - least,
            "Lower end of the mean ablation over the nulls", units, "diverging", source=SANITY,
            convention=f"positive: important; null {least:.3g} {units}, the larger of "
            f"{' and '.join(levels)}; {what}",
            evidence="causal",
        ),
    }  # fmt: skip
    if again:
        ends = np.array(
            [agreement(methods[key], second[key], seed, paired=False) for key in names]
        ).T
        variables |= interval(
            "paraphrase_agreement", ("ranking",), *ends, "Agreement with another draw of the task",
            "Spearman ρ", "diverging", -1, 1, source=SOURCE,
            convention="rank correlation over heads of the absolute means over prompts, other "
            f"names and templates (seed {task.seed + 1}); {what}",
        )  # fmt: skip
    if random_weights:
        variables |= interval(
            "untrained_agreement", (), *untold,
            "Gate gradient against zero ablation with random weights", "Spearman ρ", "diverging",
            -1, 1, source=SANITY, convention=f"same config, weights of the initialiser; {what}",
        )  # fmt: skip
    coords: dict[str, Any] = {
        "one": names, "other": names, "ranking": names, "condition": list(CONDITIONS),
    }  # fmt: skip
    return dataset(
        capture,
        variables,
        coords,
        convention=what,
        top_heads=[label(head) for head in top(mean["mean"].values, 5)],
        important_heads=found,
        note=_note(methods, table[0], retest[0], found, left_out, paraphrase and not again, count),
    )


def _null(
    capture: xr.Dataset, model: Model, task: Task, metric: str, labels: Any, seed: int
) -> float:
    """Return what the largest head's mean ablation reaches where there is nothing to find."""
    from dataclasses import replace

    from headscope.analyses._interventions import ablation

    encoded = ablation.encode_task(model, task)
    if labels is not None:
        encoded = replace(encoded, questions=labels)
    clean = ablation.evaluate(model, encoded, (), metric)[:, None, None]
    mean = ablation.mean_z(capture)
    return threshold(clean - ablation.ablate_each_head(model, encoded, metric, mean), seed)


def _note(
    methods: dict[str, Array],
    table: Array,
    retest: Array,
    found: list[str],
    left_out: str,
    not_again: bool,
    count: int,
) -> str:
    names = list(methods)
    said = []
    if count < 2:
        said.append("One prompt has no interval, so no head is called important.")
    else:
        listed = f": {', '.join(found[:8])}" if found else ""
        said.append(f"Heads above both nulls: {len(found)}{listed}.")
        weak = int(np.nanargmin(retest)) if not np.isnan(retest).all() else 0
        said.append(f"Least reliable: {names[weak]} ({retest[weak]:.2f} with {count} prompts).")
    pairs = [
        (table[row, column], names[row], names[column])
        for row in range(len(names))
        for column in range(row)
        if not np.isnan(table[row, column])
    ]
    if pairs:
        rho, one, other = min(pairs)
        ends = parting(methods[one].mean(0), methods[other].mean(0), 2)
        word = "DISAGREEMENT: " if rho < 0.5 else ""
        said.append(
            f"{word}{one} and {other} agree least (Spearman ρ {rho:.2f}); furthest apart "
            f"{' and '.join(ends)}."
        )
    if left_out:
        said.append(f"Without direct logits: {left_out}")
    if not_again:
        said.append("A task of one's own cannot be drawn again, so there is no second draw.")
    return " ".join(said)
