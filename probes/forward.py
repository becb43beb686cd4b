"""Forward passes through the seam: logits and task metrics, with or without edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.attention import attend
from headscope.kernels.differentiable import attend_differentiable
from headscope.kernels.refusal import Refused
from headscope.kernels.request import Request
from headscope.probes.edits import Edit
from headscope.probes.seam import Call, installed

if TYPE_CHECKING:
    import xarray as xr

    from headscope.probes.model import Model
    from headscope.probes.task import Task

Take = Callable[[Call, dict[str, Tensor], Tensor], None]


@dataclass
class Reader:
    """Answer every attention call with the engine: statistics, then edits on ``z``."""

    request: Request
    edits: Sequence[Edit] = ()
    take: Take | None = None
    layers: list[int] = field(default_factory=list)

    def __call__(self, call: Call) -> Tensor:
        """Compute one layer, hand its statistics on, return the edited ``z``."""
        flags: Any = {
            "scale": call.scale,
            "causal": call.causal,
            "window": call.window,
            "softcap": call.softcap,
            "key_mask": call.key_mask,
        }
        inputs = (call.query, call.key, call.value)
        outputs: dict[str, Tensor] = {}
        if torch.is_grad_enabled() and any(one.requires_grad for one in inputs):
            z = attend_differentiable(*inputs, **flags)
        else:
            outputs = attend(*inputs, self.request, **flags)
            z = outputs["z"]
        for edit in self.edits:
            z = edit.apply(call.layer, z)
        self.layers.append(call.layer)
        if self.take is not None:
            self.take(call, outputs, z)
        return z


def run(model: Model, ids: Int[Tensor, "batch position"], reader: Reader, *, head: bool) -> Tensor:
    """Run the model once through the seam; every layer must arrive exactly once.

    Returns the logits, or with ``head=False`` the last hidden state, which spares the
    vocabulary-sized matrix.
    """
    for edit in reader.edits:
        edit.check(model.layers, model.heads, model.geometry.value_size)
    before = len(reader.layers)
    with installed(model, reader):
        result = _call(model, ids.to(model.device), head)
    arrived = reader.layers[before:]
    if sorted(arrived) != list(range(model.layers)):
        raise Refused(
            f"model: layers {sorted(arrived)} of {model.name} asked for attention, expected each "
            f"of 0 to {model.layers - 1} once; this architecture is refused"
        )
    if not bool(torch.isfinite(result).all()):
        raise Refused(f"model: {model.name} gives NaN or infinite numbers; check its weights")
    return result


def _call(model: Model, ids: Tensor, head: bool) -> Tensor:
    result: Tensor
    if head and model.bridge is not None:
        result = model.bridge(ids, return_type="logits")
    elif head:
        result = model.module(input_ids=ids, use_cache=False).logits
    else:
        result = model.module.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return result


def logits(
    model: Model, ids: Int[Tensor, "batch position"], edits: Sequence[Edit] = ()
) -> Float[Tensor, "batch position vocab"]:
    """Compute the next-token logits of a model, with its heads edited.

    Differentiable with respect to the values of a `Gate` when gradients are enabled.

    Parameters
    ----------
    model
        A model from `load_model`.
    ids
        Token ids, all prompts of one length.
    edits
        Edits on the heads, applied in order.

    Returns
    -------
    Logits with dims batch, position, vocabulary, in the model's dtype.

    Raises
    ------
    Refused
        For edits that do not fit the model and for logits that are not numbers.

    Examples
    --------
    >>> import torch
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> tuple(logits(model, torch.tensor([[0, 5, 6]])).shape[:2])
    (1, 3)
    """
    ids = torch.as_tensor(ids)
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise Refused(f"ids: dims {tuple(ids.shape)}; give (batch, position), at least one token")
    model.check_lengths([ids.shape[1]])
    return run(model, ids, Reader(Request(stats=()), edits), head=True)


def score(
    logits: Float[Tensor, "batch position vocab"],
    questions: Sequence[Sequence[Any]],
    metric: str,
) -> Float[Tensor, " batch"]:
    """Score the answers of a task, one number per prompt: the mean over its questions.

    Parameters
    ----------
    logits
        Logits with dims batch, position, vocabulary.
    questions
        Per prompt, its questions in token positions, with fields ``at``, ``answer_ids`` and
        ``wrong_ids`` (`headscope.probes.tokens.encode`).
    metric
        ``logit_difference``: mean logit of the answers minus mean logit of the wrong answers.
        ``probability_difference``: sum of the probabilities, likewise, between -1 and 1.
        ``accuracy``: 1 where the most probable of all tokens is an answer, else 0; it has no
        gradient.

    Returns
    -------
    One number per prompt, float32; differentiable except for accuracy.
    """
    if metric not in METRICS:
        raise Refused(f"metric: no {metric!r}; choose one of {', '.join(METRICS)}")
    rows = []
    for row, asked in enumerate(questions):
        if not asked:
            raise Refused("task: a prompt has no question, so it has no metric")
        one = [_score_one(logits[row, question.at].float(), question, metric) for question in asked]
        rows.append(torch.stack(one).mean())
    return torch.stack(rows)


METRICS = ("logit_difference", "probability_difference", "accuracy")


def _score_one(row: Float[Tensor, " vocab"], question: Any, metric: str) -> Tensor:
    right = torch.tensor(question.answer_ids, device=row.device)
    wrong = torch.tensor(question.wrong_ids, device=row.device)
    if metric == "accuracy":
        return (row.argmax() == right).any().float()
    if len(wrong) == 0:
        raise Refused(f"wrong: the metric {metric} needs wrong answers; use metric='accuracy'")
    if metric == "logit_difference":
        return row[right].mean() - row[wrong].mean()
    chance = row.softmax(-1)
    return chance[right].sum() - chance[wrong].sum()


def evaluate(
    model: Model, task: Task, edits: Sequence[Edit] = (), metric: str | None = None
) -> xr.DataArray:
    """Measure how well a model does a task, with its heads edited.

    Parameters
    ----------
    model
        A model from `load_model`, with its tokenizer.
    task
        A task from `headscope.probes.tasks.make`.
    edits
        Edits on the heads, applied in order.
    metric
        ``logit_difference``, ``probability_difference`` or ``accuracy`` (see `score`); the
        task's own without it.

    Returns
    -------
    The metric with dim prompt: the mean over each prompt's questions.

    Raises
    ------
    Refused
        For an unknown metric, a task whose words the tokenizer splits, prompts that are too
        long, edits that do not fit.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> from headscope.probes.tasks import make
    >>> task = make("induction", n=2, seed=0)
    >>> evaluate(load_model("headscope/bundled"), task, metric="accuracy").dims
    ('prompt',)
    """
    import numpy as np
    import xarray as xr

    from headscope.probes.prompts import batches, read

    read_in = read(model, task)
    assert read_in.encoded is not None
    name = metric or task.metric
    values = np.full(len(read_in.ids), np.nan, dtype=np.float32)
    # A batch's logits stay below a quarter of a gigabyte whatever the vocabulary.
    tokens = max(1, min(8192, 2**26 // model.vocabulary))
    with torch.no_grad():
        for rows in batches(read_in.ids, tokens):
            ids = torch.tensor([read_in.ids[row] for row in rows])
            asked = [read_in.encoded.questions[row] for row in rows]
            values[rows] = score(logits(model, ids, edits), asked, name).cpu().numpy()
    low, high = {"accuracy": (0.0, 1.0), "probability_difference": (-1.0, 1.0)}.get(
        name, (None, None)
    )
    bounds = {} if low is None else {"low": low, "high": high}
    scale = "sequential" if name == "accuracy" else "diverging"
    attrs = {"long_name": name.replace("_", " "), "units": UNITS[name], "scale": scale, **bounds}
    return xr.DataArray(values, dims=("prompt",), name=name, attrs=attrs)


UNITS = {"logit_difference": "logits", "probability_difference": "probability", "accuracy": "share"}
