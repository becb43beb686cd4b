"""Loss of a model on its own prompts: what an edit costs in predicting the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.kernels.refusal import Refused

if TYPE_CHECKING:
    from headscope.probes.model import Model

# Logits of one prompt beyond this would take more than 8 GB.
MOST = 2**31


def tokens(capture: xr.Dataset) -> list[list[int]]:
    """Return the token ids of every prompt of a capture."""
    ids = capture["token_id"].transpose("prompt", "query").values
    lengths = capture["length"].values
    return [[int(one) for one in row[:end]] for row, end in zip(ids, lengths, strict=True)]


def losses(model: Model, ids: Sequence[int], edits: Sequence[Any] = ()) -> NDArray[np.float64]:
    """Return −log p of each next token of one prompt, in nats (token after the first).

    Raises
    ------
    Refused
        When the logits of the prompt would not fit into memory.
    """
    return observed(model, ids, edits, ())[0]


def observed(
    model: Model, ids: Sequence[int], edits: Sequence[Any], stats: tuple[str, ...]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return the losses of one prompt, and statistics by head from the same pass.

    A statistic has the dims layer, head and its own; NaN in layers without an attention map.
    """
    import torch

    from headscope.kernels.request import Request
    from headscope.probes.forward import Reader, run

    if len(ids) * model.vocabulary > MOST:
        raise Refused(
            f"prompts: {len(ids)} tokens times {model.vocabulary} words are too many logits for "
            f"the loss; give at most {MOST // model.vocabulary} tokens a prompt"
        )
    found: dict[str, NDArray[np.float64]] = {}

    def take(call: Any, outputs: Any, z: Any) -> None:
        for name in stats:
            values = outputs[name][0].double().cpu().numpy()
            whole = found.setdefault(name, np.full((model.layers, *values.shape), np.nan))
            whole[call.layer] = values

    given = torch.tensor([list(ids)])
    with torch.no_grad():
        logits = run(model, given, Reader(Request(stats=stats), tuple(edits), take), head=True)
    wanted = given[0, 1:].to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), wanted, reduction="none")
    return np.asarray(loss.cpu().numpy(), dtype=np.float64), found


def predicts(capture: xr.Dataset) -> bool:
    """Tell whether every layer is causal, so that logits predict the next token."""
    return bool(capture["causal"].values[attending(capture)].all())


def attending(capture: xr.Dataset) -> NDArray[np.bool_]:
    """Tell which layers have an attention map."""
    if "attention_map" in capture.coords:
        return np.asarray(capture["attention_map"].values, dtype=bool)
    return np.ones(capture.sizes["layer"], dtype=bool)
