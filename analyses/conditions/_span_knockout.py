"""Knocked-out spans: the output of heads at one query with and without some keys."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.interventions import KnockOut
from headscope.probes.models.model import Model


class _Direct(Reader):
    """Compute every layer twice, with the edits and without, and go on without them."""

    def __call__(self, call: Any) -> Tensor:
        """Record the edited output; return the clean one."""
        outputs = call.attend(self.request, self.inside(call))
        self.layers.append(call.layer)
        if self.take is not None:
            self.take(call, outputs, outputs["z"])
        clean: Tensor = call.attend(self.request, None)["z"]
        return clean


def outputs(
    model: Model, ids: Sequence[int], query: int, keys: Sequence[int], method: str
) -> Array:
    """Return the output z of every head at one query of one prompt (layer, head, size).

    Exact at any length: the keys (none for the clean output) are hidden inside the attention, in
    all heads, from the queries after the first of them. ``method`` is ``total`` (hidden in all
    layers at once, so that later layers read what earlier ones no longer pass on) or ``direct`` (in
    each layer alone, which reads a clean residual stream). NaN in layers without an attention map.
    """
    z_at_query = np.full((model.layers, model.heads, model.geometry.value_size), np.nan)

    def take(call: Any, _: Any, z: Tensor) -> None:
        z_at_query[call.layer] = z[0, :, query].double().cpu().numpy()

    edits: tuple[KnockOut, ...] = ()
    if keys:
        heads = tuple((at, head) for at in model.geometry.attending for head in range(model.heads))
        # The first key of all sees nothing else, and is no query that reads the span.
        queries = tuple(range(min(keys) + 1, len(ids)))
        edits = (KnockOut(heads=heads, keys=tuple(keys), queries=queries),)
    reader = (_Direct if method == "direct" else Reader)(Request(stats=()), edits, take)
    with torch.no_grad():
        run(model, torch.tensor([list(ids)]), reader, head=False)
    return z_at_query


def distances(first: Array, second: Array) -> tuple[Array, Array]:
    """Return the Euclidean distance of two outputs, and its share of the two norms (layer, head).

    The share is ``‖a − b‖ / (‖a‖ + ‖b‖)``: 0 for equal outputs, 1 where one of them is 0 or they
    are opposite.
    """
    far = np.linalg.norm(first - second, axis=-1)
    norms = np.linalg.norm(first, axis=-1) + np.linalg.norm(second, axis=-1)
    # Heads that write nothing on either side do not differ.
    return far, np.where(np.isnan(norms), np.nan, far / np.where(norms > 0, norms, 1.0))
