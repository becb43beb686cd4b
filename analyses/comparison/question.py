"""What if: one model with and without edits, on a task or on the user's own text."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions.ablation import Array, encode_task, evaluate
from headscope.analyses._interventions.metrics import METRICS, UNITS
from headscope.analyses._interventions.next_token_loss import check_memory
from headscope.analyses._runtime.options import OneOf
from headscope.analyses._runtime.results import Results
from headscope.analyses._runtime.verdict import Verdict
from headscope.kernels.errors import InvalidInput
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Edit
from headscope.probes.models.model import Model
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task

CONDITIONS = ("without edits", "with edits")


def what_if(
    model: Model,
    prompts: Any,
    edits: Sequence[Edit],
    *,
    metric: str = "task",
    words: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Compare a task, or a text, before and after editing some heads.

    Parameters
    ----------
    model
        A model that predicts the next token.
    prompts
        A task, for its metric; or texts or token ids, for the loss on every next token.
    edits
        Edits of `headscope.probes.interventions`, applied in order.
    metric
        Of a task: ``task`` (its own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``.
    words
        Most likely next words after the last token of a text that are listed, of either side.
    seed
        Seed of the bootstrap.

    Returns
    -------
    Dataset with ``score`` (condition: without and with edits) and ``change`` (with − without, the
    same prompts or tokens), with 95 % intervals over the prompts, or over the tokens of a single
    text; of a single text also ``loss`` (condition, query; −log p of each token in nats, no value
    for the first) and ``next_probability`` (condition, word).

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> from headscope.probes.interventions import Ablate
    >>> model = load_model("headscope/bundled")
    >>> answer = what_if(model, [[0, 5, 6, 5]], [Ablate(((3, 0),))])
    >>> answer["score"].dims, answer["loss"].dims
    (('condition',), ('condition', 'query'))
    """
    if not edits:
        raise InvalidInput("edits: none; give one or more of headscope.probes.interventions")
    model.check_predicts()
    for edit in edits:
        edit.check(model.geometry)
    results, coords, attrs = (
        _of_task(model, prompts, edits, metric, seed)
        if isinstance(prompts, Task)
        else _of_texts(model, prompts, edits, words, seed)
    )
    verdict = _verdict(results)
    return xr.Dataset(
        results.variables,
        coords={"condition": list(CONDITIONS), **coords},
        attrs={
            "model": model.name, "revision": model.revision, "seed": seed,
            "edits": json.dumps([edit.describe() for edit in edits]),
            "verdict": verdict.state, "note": verdict.text, **attrs,
        },
    )  # fmt: skip


Answer = tuple[Results, dict[str, Any], dict[str, Any]]


def _of_task(model: Model, task: Task, edits: Sequence[Edit], metric: str, seed: int) -> Answer:
    OneOf(METRICS).check("metric", metric)
    name = task.metric if metric == "task" else metric
    encoded, sides = encode_task(model, task), []
    for side_edits in ((), tuple(edits)):
        sides.append(evaluate(model, encoded, side_edits, name))
    metric_name = name.replace("_", " ")
    convention = f"{metric_name} on {len(task)} prompts of {task.name}"
    results = _contrast(
        np.stack(sides, axis=1), metric_name.capitalize(), UNITS[name], convention, seed
    )
    return results, {}, {"task": task.name}


def _of_texts(model: Model, prompts: Any, edits: Sequence[Edit], words: int, seed: int) -> Answer:
    encoded = read(model, prompts)
    if any(len(ids) < 2 for ids in encoded.ids):
        raise InvalidInput("prompts: one of a single token has no next token; give longer ones")
    passes: list[list[tuple[Array, Array]]] = []
    for ids in encoded.ids:
        passes.append([])
        for side_edits in ((), edits):
            passes[-1].append(_pass(model, ids, side_edits))
    title = "Loss on the next token"
    if len(passes) > 1:
        samples = np.array([[loss.mean() for loss, _ in sides] for sides in passes])
        convention = f"mean over tokens; interval over {len(passes)} prompts; higher is worse"
        return _contrast(samples, title, "nats a token", convention, seed), {}, {}
    [sides], [ids] = passes, encoded.ids
    samples = np.stack([loss for loss, _ in sides], axis=1)
    convention = (
        f"interval over the {len(samples)} tokens of this text, as if they were independent; "
        "higher is worse"
    )
    results = _contrast(samples, title, "nats a token", convention, seed)
    chances = np.stack([chance for _, chance in sides])
    best = dict.fromkeys(
        int(word) for row in chances for word in np.argsort(-row, kind="stable")[:words]
    )
    results.add_all(
        ("loss", ("condition", "query"), np.concatenate([np.full((1, 2), np.nan), samples]).T,
         "Loss on each token", ("nats", "sequential", 0), "−log p of the token"),
        ("next_probability", ("condition", "word"), chances[:, list(best)],
         "Most likely next words", ("probability", "sequential", 0, 1),
         f"the {words} most likely ones of either side"),
    )  # fmt: skip
    coords = {
        "query": np.arange(len(ids)),
        "token": ("query", model.to_str_tokens(ids)),
        "word": model.to_str_tokens(list(best)),
    }
    return results, coords, {"prompts_sha256": encoded.digest()}


def _pass(model: Model, ids: Sequence[int], edits: Sequence[Edit]) -> tuple[Array, Array]:
    """Return the loss of each token after the first, and the chances of what comes next."""
    check_memory(model, len(ids))
    with torch.no_grad():
        chances = logits(model, torch.tensor([list(ids)]), edits)[0].float().log_softmax(-1)
    following = torch.tensor(list(ids[1:]), device=chances.device)
    loss = -chances[:-1].gather(1, following[:, None])[:, 0]
    return loss.double().cpu().numpy(), chances[-1].exp().double().cpu().numpy()


def _contrast(samples: Array, title: str, units: str, convention: str, seed: int) -> Results:
    results = Results(xr.Dataset(), seed=seed, convention=convention, evidence="causal")
    results.add_mean("score", ("condition",), samples, title, units, "diverging")
    change = samples[:, 1] - samples[:, 0]
    results.add_mean("change", (), change, f"{title}: with − without edits", units, "diverging")
    return results


def _verdict(results: Results) -> Verdict:
    lower, upper = (float(results[f"change_{end}"].values) for end in ("lower", "upper"))
    if not np.isfinite(lower):
        return Verdict("too_few", "One sample has no interval.")
    if lower > 0 or upper < 0:
        return Verdict("supported", "The edits change it: the interval of the change leaves out 0.")
    return Verdict("not_supported", "No change is shown: the interval of the change holds 0.")
