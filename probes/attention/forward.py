"""Forward passes with intercepted attention: logits and task metrics, with or without edits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels.api import Request, WeightEdits
from headscope.kernels.errors import HeadscopeError, InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.interventions.base import Edit
from headscope.probes.models.encoder_decoder import SELF, through
from headscope.probes.models.pair import Pair, start_token
from headscope.probes.models.vision import vision_tower
from headscope.probes.prompts.prompt_batch import batches
from headscope.probes.prompts.reading import read

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.models.pair import Ids
    from headscope.probes.prompts.task import Task

METRICS = ("logit_difference", "probability_difference", "accuracy")
UNITS = {"logit_difference": "logits", "probability_difference": "probability", "accuracy": "share"}

# A user's config may ask for more than we read, or for a tuple in place of named outputs.
PLAIN: dict[str, Any] = {
    "use_cache": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}

Take = Callable[[AttentionCall, dict[str, Tensor], Tensor], None]


@dataclass
class Reader:
    """Answer every attention call with the engine: statistics, then edits on ``z``."""

    request: Request
    edits: Sequence[Edit] = ()
    take: Take | None = None
    layers: list[int] = field(default_factory=list)

    def __call__(self, call: AttentionCall) -> Tensor:
        """Compute one layer, hand its statistics on, return the edited ``z``."""
        outputs = call.attend(self.request, self.inside(call))
        z = outputs["z"]
        for edit in self.edits:
            z = edit.apply(call.layer, z)
        self.layers.append(call.layer)
        if self.take is not None:
            self.take(call, outputs, z)
        return z

    def inside(self, call: AttentionCall) -> WeightEdits | None:
        """Combine what the edits change inside the attention of one layer."""
        shape = (*call.query.shape[:3], call.key.shape[2])
        changes = [edit.inside(call.layer, shape) for edit in self.edits]
        present = [change for change in changes if change is not None]
        return functools.reduce(WeightEdits.then, present) if present else None


def run(
    model: Model,
    ids: Ids,
    reader: Reader,
    *,
    head: bool,
    mask: Bool[Tensor, "batch position"] | None = None,
) -> Tensor:
    """Run the model once, its attention intercepted; every layer must arrive exactly once.

    An encoder–decoder model is given a `Pair` of token ids; its encoder alone may also be given
    what it reads. A model of images is given pixels (batch, channel, height, width).

    Returns the logits, or with ``head=False`` the last hidden state, which spares the
    vocabulary-sized matrix. ``mask`` is True at tokens that are no padding.
    """
    for edit in reader.edits:
        edit.check(model.geometry)
    before = len(reader.layers)
    with intercept_attention(model, reader):
        result = call(model, ids, head=head, mask=mask)
    arrived = reader.layers[before:]
    if sorted(arrived) != model.geometry.attending:
        raise UnsupportedModel(
            f"model: layers {sorted(arrived)} of {model.name} asked for attention, expected each "
            f"of {model.geometry.attending} once; this architecture is refused"
        )
    if not bool(torch.isfinite(result).all()):
        raise InvalidInput(f"model: {model.name} gives NaN or infinite numbers; check its weights")
    return result


def call(
    model: Model,
    ids: Ids,
    *,
    head: bool,
    mask: Bool[Tensor, "batch position"] | None = None,
) -> Tensor:
    """Call a model, whatever its attention is computed by: logits, or the last hidden state."""
    result: Tensor
    if model.attention != SELF:
        pair = paired(model, ids)
        return through(model, pair.source, pair.target, PLAIN, head=head)
    if isinstance(ids, Pair):
        raise InvalidInput(
            f"ids: a Pair, but {model.name} has no encoder and decoder; give token ids"
        )
    ids = ids.to(model.device)
    if ids.is_floating_point():
        return _run_vision(model, ids)
    if model.reads != "tokens":
        raise UnsupportedModel(
            f"model: {model.architecture} reads {model.reads}, and this asks for tokens"
        )
    padding = {} if mask is None else {"attention_mask": mask.long().to(ids.device)}
    if head and model.bridge is not None:
        result = model.bridge(ids, return_type="logits", **padding)
    elif head:
        result = model.module(input_ids=ids, **padding, **PLAIN).logits
    else:
        result = model.module.base_model(input_ids=ids, **padding, **PLAIN).last_hidden_state
    return result


def _run_vision(model: Model, pixels: Tensor) -> Tensor:
    """Run a vision model on pixels: the last hidden state."""
    result: Tensor
    try:
        output = vision_tower(model.module)(pixel_values=pixels.to(model.dtype), **PLAIN)
    except HeadscopeError:
        raise
    except ValueError as error:
        # The model's own word on a size that it does not take.
        raise InvalidInput(f"prompts: {str(error).splitlines()[0]}") from error
    result = output.last_hidden_state
    return result


def paired(model: Model, ids: Ids) -> Pair:
    """Complete what an encoder reads with the start of a target; refuse half a pair elsewhere."""
    if isinstance(ids, Pair):
        return ids
    if model.attention != "encoder":
        raise NotApplicable(
            f"ids: the {model.attention} attention of {model.name} needs source and target; "
            "give Pair(source=..., target=...)"
        )
    return Pair(ids, torch.full((len(ids), 1), start_token(model)))


def logits(
    model: Model, ids: Ids, edits: Sequence[Edit] = ()
) -> Float[Tensor, "batch position vocab"]:
    """Compute the next-token logits of a model, with its heads edited.

    Differentiable with respect to the values of a `Gate` when gradients are enabled.

    Parameters
    ----------
    model
        A model from `load_model`.
    ids
        Token ids, all prompts of one length; for an encoder–decoder model a `Pair` of them.
    edits
        Edits on the heads, applied in order.

    Returns
    -------
    Logits with dims batch, position, vocabulary, in the model's dtype.

    Raises
    ------
    HeadscopeError
        For edits that do not fit the model and for logits that are not numbers.
    """
    if model.reads == "images":
        raise NotApplicable(
            f"ids: {model.architecture} reads images, so it has no next-token logits"
        )
    texts = (ids.source, ids.target) if isinstance(ids, Pair) else (ids,)
    parts = [torch.as_tensor(part) for part in texts]
    for part in parts:
        if part.ndim != 2 or part.shape[1] == 0:
            raise InvalidInput(
                f"ids: dims {tuple(part.shape)}; give (batch, position), a token or more"
            )
        model.check_lengths([part.shape[1]])
    ids = Pair(*parts) if isinstance(ids, Pair) else parts[0]
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
        ``wrong_ids`` (`headscope.probes.prompts.tokens.encode`).
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
        raise InvalidInput(f"metric: no {metric!r}; choose one of {', '.join(METRICS)}")
    if not all(questions):
        raise NotApplicable("task: a prompt has no question, so it has no metric")
    flat = [(row, question) for row, of_prompt in enumerate(questions) for question in of_prompt]
    if metric != "accuracy" and not all(question.wrong_ids for _, question in flat):
        raise NotApplicable(
            f"wrong: the metric {metric} needs wrong answers; use metric='accuracy'"
        )
    device = logits.device
    owner = torch.tensor([row for row, _ in flat], device=device)
    at = torch.tensor([question.at for _, question in flat], device=device)
    asked_logits = logits[owner, at].float()
    right, is_right = _padded([question.answer_ids for _, question in flat], device)
    if metric == "accuracy":
        hits = (asked_logits.argmax(-1, keepdim=True) == right) & is_right
        values = hits.any(-1).float()
    else:
        wrong, is_wrong = _padded([question.wrong_ids for _, question in flat], device)
        chances = metric == "probability_difference"
        source = asked_logits.softmax(-1) if chances else asked_logits
        values = _gathered(source, right, is_right, mean=not chances)
        values = values - _gathered(source, wrong, is_wrong, mean=not chances)
    total = values.new_zeros(len(questions)).index_add(0, owner, values)
    counts = torch.tensor([len(of_prompt) for of_prompt in questions], device=device)
    return total / counts


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    padded = torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], device=device)
    return padded.clamp_min(0), padded >= 0


def _gathered(source: Tensor, index: Tensor, real: Tensor, *, mean: bool) -> Tensor:
    total = torch.where(real, source.gather(1, index), 0.0).sum(-1)
    return total / real.sum(-1) if mean else total


def evaluate(
    model: Model, task: Task, edits: Sequence[Edit] = (), metric: str | None = None
) -> xr.DataArray:
    """Measure how well a model does a task, with its heads edited.

    Parameters
    ----------
    model
        A model from `load_model`, with its tokenizer.
    task
        A task from `headscope.probes.prompts.tasks.make`.
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
    HeadscopeError
        For an unknown metric, a task whose words the tokenizer splits, prompts that are too
        long, edits that do not fit, a model that predicts no next token.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> from headscope.probes.prompts.tasks import make
    >>> task = make("induction", n=2, seed=0)
    >>> evaluate(load_model("headscope/bundled"), task, metric="accuracy").dims
    ('prompt',)
    """
    read_in = read(model, task)
    assert read_in.encoded is not None
    model.check_predicts()
    name = metric or task.metric
    values = np.full(len(read_in.ids), np.nan, dtype=np.float32)
    # A batch's logits stay below a quarter of a gigabyte whatever the vocabulary.
    tokens = max(1, min(8192, 2**26 // model.vocabulary))
    with torch.no_grad():
        for rows in batches(read_in.ids, tokens):
            ids = torch.tensor([read_in.ids[row] for row in rows])
            questions = [read_in.encoded.questions[row] for row in rows]
            values[rows] = score(logits(model, ids, edits), questions, name).cpu().numpy()
    low, high = {"accuracy": (0.0, 1.0), "probability_difference": (-1.0, 1.0)}.get(
        name, (None, None)
    )
    bounds = {} if low is None else {"low": low, "high": high}
    scale = "sequential" if name == "accuracy" else "diverging"
    attrs = {"long_name": name.replace("_", " "), "units": UNITS[name], "scale": scale, **bounds}
    return xr.DataArray(values, dims=("prompt",), name=name, attrs=attrs)
