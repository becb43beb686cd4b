"""What if: one model with and without edits, on a task or on the user's own text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime.progress import reporting, steps
from headscope.kernels.errors import InvalidInput, ResourceLimit

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

CONDITIONS = ("without edits", "with edits")


def what_if(
    model: Model,
    given: Any,
    edits: Sequence[Edit],
    *,
    metric: str = "task",
    words: int = 5,
    seed: int = 0,
    progress: Callable[[float, float], None] | None = None,
) -> xr.Dataset:
    """Answer what a task, or a text, would be like with some heads edited.

    Parameters
    ----------
    model
        A model that predicts the next token.
    given
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
    progress
        Called with (done, total) passes.

    Returns
    -------
    Dataset with ``score`` (condition: without and with edits) and ``change`` (with − without, the
    same prompts or tokens), with 95 % intervals over the prompts, or over the tokens of a single
    text; of a single text also ``loss`` (condition, query; −log p of each token in nats, no value
    for the first) and ``next_probability`` (condition, word).

    Raises
    ------
    InvalidInput
        For no edit, edits that do not fit the model, and a model that predicts no next token.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> from headscope.probes.interventions import Ablate
    >>> model = load_model("headscope/bundled")
    >>> answer = what_if(model, [[0, 5, 6, 5]], [Ablate(((3, 0),))])
    >>> answer["score"].dims, answer["loss"].dims
    (('condition',), ('condition', 'query'))
    """
    from headscope.probes.prompts.task import Task

    if not edits:
        raise InvalidInput("edits: none; give one or more of headscope.probes.interventions")
    model.check_predicts()
    for edit in edits:
        edit.check(model.geometry)
    with reporting(progress):
        answer = (
            _of_task(model, given, edits, metric, seed)
            if isinstance(given, Task)
            else _of_texts(model, given, edits, words, seed)
        )
    answer.attrs = {
        "model": model.name,
        "revision": model.revision,
        "seed": seed,
        "edits": json.dumps([edit.describe() for edit in edits]),
        **answer.attrs,
    }
    return answer


def _of_task(
    model: Model,
    task: Any,
    edits: Sequence[Edit],
    metric: str,
    seed: int,
) -> xr.Dataset:
    from headscope.analyses._interventions.ablation import encode_task, evaluate
    from headscope.analyses._interventions.metrics import METRICS, UNITS
    from headscope.analyses._runtime import options

    options.one_of("metric", metric, METRICS)
    name = task.metric if metric == "task" else metric
    encoded, sides = encode_task(model, task), []
    with steps(2) as step:
        for some in ((), tuple(edits)):
            sides.append(evaluate(model, encoded, some, name))
            step()
    convention = f"{name.replace('_', ' ')} on {len(task)} prompts of {task.name}"
    answer = _contrast(
        np.stack(sides, axis=1), name.replace("_", " ").capitalize(), UNITS[name], convention, seed
    )
    return answer.assign_attrs(task=task.name)


def _of_texts(
    model: Model,
    given: Any,
    edits: Sequence[Edit],
    words: int,
    seed: int,
) -> xr.Dataset:
    from headscope.probes.prompts.reading import read

    prompts = read(model, given)
    short = [len(ids) for ids in prompts.ids if len(ids) < 2]
    if short:
        raise InvalidInput("prompts: one of a single token has no next token; give longer ones")
    with steps(2 * len(prompts.ids)) as step:
        passes = [
            [_pass(model, ids, some, step) for some in ((), tuple(edits))] for ids in prompts.ids
        ]
    title = "Loss on the next token"
    if len(passes) > 1:
        samples = np.array([[side[0].mean() for side in both] for both in passes])
        convention = f"mean over tokens; interval over {len(passes)} prompts; higher is worse"
        return _contrast(samples, title, "nats a token", convention, seed)
    both = passes[0]
    samples = np.stack([side[0] for side in both], axis=1)
    convention = (
        f"interval over the {len(samples)} tokens of this text, as if they were independent; "
        "higher is worse"
    )
    answer = _contrast(samples, title, "nats a token", convention, seed)
    ids = prompts.ids[0]
    answer["loss"] = _variable(
        ("condition", "query"),
        np.concatenate([np.full((1, 2), np.nan), samples]).T,
        "Loss on each token", "nats", "sequential", low=0, convention="−log p of the token",
    )  # fmt: skip
    chances = np.stack([side[1] for side in both])
    best = dict.fromkeys(
        int(one) for row in chances for one in np.argsort(-row, kind="stable")[:words]
    )
    answer["next_probability"] = _variable(
        ("condition", "word"), chances[:, list(best)], "Most likely next words", "probability",
        "sequential", low=0, high=1, convention=f"the {words} most likely ones of either side",
    )  # fmt: skip
    return answer.assign_coords(
        query=np.arange(len(ids)),
        token=("query", model.words(ids)),
        word=model.words(list(best)),
    ).assign_attrs(prompts_sha256=prompts.digest())


def _pass(
    model: Model, ids: Sequence[int], edits: Sequence[Edit], step: Callable[[], None]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the loss of each token after the first, and the chances of what comes next."""
    import torch

    from headscope.analyses._interventions.next_token_loss import MOST
    from headscope.probes.attention.forward import logits

    if len(ids) * model.vocabulary > MOST:
        raise ResourceLimit(
            f"prompts: {len(ids)} tokens times {model.vocabulary} words are too many logits; "
            f"give at most {MOST // model.vocabulary} tokens a prompt"
        )
    with torch.no_grad():
        chances = logits(model, torch.tensor([list(ids)]), edits)[0].float().log_softmax(-1)
    said = torch.tensor(list(ids[1:]), device=chances.device)
    loss = -chances[:-1].gather(1, said[:, None])[:, 0]
    step()
    return loss.double().cpu().numpy(), chances[-1].exp().double().cpu().numpy()


def _contrast(
    samples: np.ndarray[Any, Any], title: str, units: str, convention: str, seed: int
) -> xr.Dataset:
    from headscope.analyses._runtime.results import averaged

    change = samples[:, 1] - samples[:, 0]
    given: dict[str, Any] = {"seed": seed, "convention": convention, "evidence": "causal"}
    variables = {
        **averaged("score", ("condition",), samples, title, units, "diverging", **given),
        **averaged("change", (), change, f"{title}: with − without edits", units, "diverging",
                   **given),
    }  # fmt: skip
    lower, upper = (float(variables[f"change_{end}"].values) for end in ("lower", "upper"))
    if not np.isfinite(lower):
        note = "INCONCLUSIVE: one sample has no interval."
    elif lower > 0 or upper < 0:
        note = "The edits change it: the interval of the change leaves out 0."
    else:
        note = "No change is shown: the interval of the change holds 0."
    return xr.Dataset(variables, coords={"condition": list(CONDITIONS)}, attrs={"note": note})


def _variable(dims: tuple[str, ...], values: Any, *meaning: Any, **more: Any) -> xr.Variable:
    from headscope.analyses._runtime.results import variable

    return variable(dims, values, *meaning, evidence="causal", **more)
