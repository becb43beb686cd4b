"""Recompute one layer's attention on one prompt by running the model up to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headscope.kernels.api import AttentionSpec, Request, WeightEdits, head_statistics, head_weights
from headscope.kernels.errors import InvalidInput, UnsupportedModel
from headscope.probes.attention.forward import Reader
from headscope.probes.attention.forward import call as call_model
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.interventions.base import Edit

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

Array = npt.NDArray[np.float32]
OVERVIEW = ("pooled_mean", "pooled_max", "received", "entropy")


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass that has done its work
    def __init__(self, call: AttentionCall) -> None:
        super().__init__()
        self.call = call


@dataclass(frozen=True, eq=False)
class Layer:
    """The attention of one layer on one prompt, with what edits change inside it."""

    call: AttentionCall
    edits: WeightEdits | None

    def weights(
        self, head: int, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
    ) -> Array:
        """Compute some rows and columns of one head's weights, with memory linear in the prompt.

        Positions of queries and keys are given each once and in ascending order.
        """
        index = (torch.from_numpy(rows), torch.from_numpy(columns))
        return head_weights(self.call.query, self.call.key, head, *index, self.spec).cpu().numpy()

    def overview(self, head: int, tile: int) -> dict[str, Array]:
        """Pool one head's map into tiles of so many tokens, with what every token receives.

        By name: ``pooled_mean``, ``pooled_max``, ``received`` and, where rows are shares of one
        whole, ``entropy``.
        """
        request = Request(stats=OVERVIEW[:3] if self.spec.sigmoid else OVERVIEW, tile=tile)
        results = head_statistics(self.call.query, self.call.key, head, request, self.spec)
        return {name: result.cpu().numpy() for name, result in results.items()}

    @property
    def spec(self) -> AttentionSpec:
        """Attention specification of the layer, edits included."""
        return self.call.variant(self.edits)


@torch.no_grad()
def run_until_layer(
    model: Model, ids: Sequence[int], layer: int, edits: Sequence[Edit] = ()
) -> Layer:
    """Run a model on one prompt up to one layer, and stop there.

    What is returned holds the layer's queries and keys: memory linear in the prompt.

    >>> import numpy as np
    >>> from headscope.probes import load_model
    >>> again = run_until_layer(load_model("headscope/bundled"), [0, 5, 6, 5], layer=2)
    >>> float(again.weights(3, np.arange(3, 4), np.arange(4)).sum().round(4))
    1.0
    """
    model.check_lengths([len(ids)])
    if layer not in model.geometry.attending:
        layers = ", ".join(map(str, model.geometry.attending))
        raise InvalidInput(f"layer: {layer} has no attention map; layers with one are {layers}")
    for edit in edits:
        edit.check(model.geometry)
    reader = Reader(Request(stats=()), edits)

    def receive(call: AttentionCall) -> Tensor:
        if call.layer == layer:
            raise _Reached(call)
        return reader(call)

    try:
        with intercept_attention(model, receive):
            call_model(model, torch.tensor([list(ids)]), head=False)
    except _Reached as reached:
        # Weights need no values, which are as large as the keys.
        call = replace(reached.call, value=reached.call.value[..., :0].clone())
        return Layer(call, reader.inside(call))
    raise UnsupportedModel(f"model: layer {layer} of {model.name} asked for no attention; refused")
