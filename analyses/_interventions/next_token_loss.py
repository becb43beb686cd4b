"""Loss of a model on its own prompts: what an edit costs in predicting the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime.results import attending
from headscope.kernels.errors import NotApplicable, ResourceLimit
from headscope.probes.prompts.tokens import EncodedQuestion, EncodedTask

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from headscope.analyses._interventions.ablation import Measure
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

# Logits of one prompt beyond this would take more than 8 GB.
MOST = 2**31


def tokens(capture: xr.Dataset) -> list[list[int]]:
    """Return the token ids of every prompt of a capture."""
    if "token_id" not in capture.coords:
        raise NotApplicable("capture: it holds no token ids, so no words to predict; capture texts")
    ids = capture["token_id"].transpose("prompt", "query").values
    lengths = capture["length"].values
    return [[int(token) for token in row[:end]] for row, end in zip(ids, lengths, strict=True)]


def losses(model: Model, ids: Sequence[int], edits: Sequence[Any] = ()) -> NDArray[np.float64]:
    """Return −log p of each next token of one prompt, in nats (token after the first)."""
    return observed(model, ids, edits, ())[0]


def mean_loss(model: Model, ids: Sequence[int], edits: Sequence[Any] = ()) -> float:
    """Return the mean −log p of the next tokens of one prompt, in nats a token."""
    _check_next(ids)
    return float(losses(model, ids, edits).mean())


def sweep_losses(
    model: Model,
    prompts: Sequence[Sequence[int]],
    starts: Int[Tensor, " variant"],
    edit: Callable[[Int[Tensor, " variant"], list[int]], Edit],
) -> NDArray[np.float64]:
    """Return the mean loss of prompts under every variant of an edit (prompt, variant).

    The parameters are those of `ablation.sweep`.
    """
    return np.asarray(sweep_measures(model, prompts, [mean_of(prompts)], starts, edit)[0])


def sweep_measures(
    model: Model,
    prompts: Sequence[Sequence[int]],
    measures: Sequence[Measure],
    starts: Int[Tensor, " variant"],
    edit: Callable[[Int[Tensor, " variant"], list[int]], Edit],
) -> NDArray[np.float64]:
    """Return measures at all positions of prompts under every variant (measure, prompt, variant).

    The parameters are those of `ablation.sweep`.
    """
    from headscope.analyses._interventions.ablation import sweep

    for ids in prompts:
        _check_next(ids)
        check_memory(model, len(ids))

    positions = [range(len(ids)) for ids in prompts]
    return np.asarray(sweep(model, prompts, positions, measures, starts, edit))


def mean_of(prompts: Sequence[Sequence[int]]) -> Measure:
    """Return what measures the mean loss of prompts from logits at all of their positions."""
    import torch

    def mean(logits: Tensor, rows: Sequence[int], _: Sequence[Sequence[int]]) -> Tensor:
        targets = torch.tensor([prompts[row][1:] for row in rows], device=logits.device)
        # A row a token: the words in the middle would take several times as long.
        inner = logits[:, :-1].flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(inner, targets.flatten(), reduction="none")
        return loss.view(targets.shape).double().mean(1)

    return mean


def every_next_token(prompts: Sequence[Sequence[int]]) -> EncodedTask:
    """Return the task of predicting every next token: its log-probability is minus the mean loss.

    >>> every_next_token([[4, 5, 6]]).question_positions
    ((0, 1),)
    """
    ids = tuple(map(tuple, prompts))
    questions = tuple(
        tuple(EncodedQuestion(at, (token,), (), ()) for at, token in enumerate(row[1:]))
        for row in ids
    )
    return EncodedTask(
        "next tokens", "log_probability", ids, ids, questions, tuple({} for _ in ids)
    )


def _check_next(ids: Sequence[int]) -> None:
    if len(ids) < 2:
        raise NotApplicable("prompts: one of a single token has no next token; give longer ones")


def check_memory(model: Model, length: int) -> None:
    """Refuse a prompt whose logits would not fit into memory."""
    if length * model.vocabulary > MOST:
        raise ResourceLimit(
            f"prompts: {length} tokens times {model.vocabulary} words are too many logits for "
            f"the loss; give at most {MOST // model.vocabulary} tokens a prompt"
        )


def observed(
    model: Model,
    ids: Sequence[int],
    edits: Sequence[Any],
    stats: tuple[str, ...],
    positions: Sequence[int] | None = None,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return the losses of one prompt, and statistics by head from the same pass.

    ``positions`` stand in place of the tokens' own. A statistic has the dims layer, head and its
    own; NaN in layers without an attention map.
    """
    import torch

    from headscope.kernels.api import Request
    from headscope.probes.attention.forward import Reader, run

    check_memory(model, len(ids))
    statistics: dict[str, NDArray[np.float64]] = {}

    def take(call: Any, outputs: Any, z: Any) -> None:
        for name in stats:
            values = outputs[name][0].double().cpu().numpy()
            grid = statistics.setdefault(name, np.full((model.layers, *values.shape), np.nan))
            grid[call.layer] = values

    batch = torch.tensor([list(ids)])
    reader = Reader(Request(stats=stats), tuple(edits), take)
    queries = None if positions is None else torch.tensor([list(positions)])
    with torch.no_grad():
        logits = run(model, batch, reader, head=True, positions=queries)
    targets = batch[0, 1:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), targets, reduction="none")
    return np.asarray(loss.cpu().numpy(), dtype=np.float64), statistics


def contrast(
    model: Model, prompts: Sequence[Sequence[int]], sets: Sequence[Sequence[Any]]
) -> NDArray[np.float64]:
    """Return the mean loss a token of each prompt under each set of edits (prompt, condition)."""
    usable = [ids for ids in prompts if len(ids) > 1]
    if not usable:
        raise NotApplicable(
            "prompts: all have one token, so there is none to predict; give longer ones"
        )
    losses = np.empty((len(usable), len(sets)))
    for number, ids in enumerate(usable):
        losses[number] = [mean_loss(model, ids, edits) for edits in sets]
    return losses


def predicts(capture: xr.Dataset) -> bool:
    """Return whether every layer is causal, so that logits predict the next token."""
    return bool(capture["causal"].values[attending(capture)].all())
