"""A layer: its attention on one prompt, made again by the model, from which any window is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.errors import InvalidInput, UnsupportedModel
from headscope.kernels.panels.engine import put
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.row_panels import Panels, Part
from headscope.kernels.request import Request
from headscope.kernels.weight_edits import WeightEdits
from headscope.probes.edit import Edit
from headscope.probes.forward import Reader
from headscope.probes.forward import call as call_model
from headscope.probes.seam import Call, installed

if TYPE_CHECKING:
    from headscope.probes.model import Model

Array = npt.NDArray[np.float32]
POOLED = ("pooled_mean", "pooled_max")


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass that has done its work
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


@dataclass(frozen=True, eq=False)
class Layer:
    """The attention of one layer on one prompt.

    Attributes
    ----------
    call
        What the layer hands over; one sequence.
    edits
        What edits change inside the layer, or None.
    """

    call: Call
    edits: WeightEdits | None

    def weights(
        self, head: int, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
    ) -> Array:
        """Compute some rows and columns of one head's weights, with memory linear in the prompt.

        Parameters
        ----------
        head
            The head.
        rows, columns
            Positions of queries and keys, each once and in ascending order.
        """
        wanted = torch.zeros(self.call.query.shape[2], dtype=torch.bool)
        wanted[torch.from_numpy(rows)] = True
        found = np.zeros((len(rows), len(columns)), dtype=np.float32)

        def work(part: Part, panels: Iterator[Panel]) -> None:
            for panel in panels:
                down = _within(rows, panel.queries)
                across = _within(columns, panel.keys)
                weights = panel.weights[0, head - part.heads.start]
                chosen = weights[torch.from_numpy(rows[down] - panel.queries.start)]
                chosen = chosen[:, torch.from_numpy(columns[across] - panel.keys.start)]
                found[down, across] = chosen.cpu().numpy()

        self._each(head, work, wanted=wanted)
        return found

    def pooled(self, head: int, tile: int) -> dict[str, Array]:
        """Pool one head's whole map into tiles: ``pooled_mean`` and ``pooled_max``.

        Parameters
        ----------
        head
            The head.
        tile
            Tokens a tile.
        """
        request = Request(stats=POOLED, tile=tile)
        chosen = [statistics.load(name) for name in POOLED]
        tiles = -(-self.call.query.shape[2] // tile)
        found: dict[str, Tensor] = {}

        def work(part: Part, panels: Iterator[Panel]) -> None:
            heads = part.heads.stop - part.heads.start
            device = self.call.query.device
            rooms = {name: torch.zeros(1, heads, tiles, tiles, device=device) for name in POOLED}
            for panel in panels:
                for statistic in chosen:
                    put(statistic, panel, rooms[statistic.name])
            here = head - part.heads.start
            found.update({name: room[:, here : here + 1] for name, room in rooms.items()})

        reductions = frozenset[str]().union(*(statistic.reads for statistic in chosen))
        panels = self._each(head, work, request=request, reductions=reductions)
        for statistic in chosen:
            if statistic.finish is not None:
                total = found[statistic.name]
                found[statistic.name] = statistic.finish(total, panels.visibility, request)
        return {name: found[name][0, 0].cpu().numpy() for name in POOLED}

    @torch.no_grad()
    def _each(self, head: int, work: Any, **options: Any) -> Panels:
        """Hand the panels of one head to ``work``; those of other heads are never filled."""
        query, key = self.call.query, self.call.key
        panels = Panels(
            query, key, self.call.value, self.call.variant(self.edits).fit(query, key), **options
        )

        def mine(part: Part, filled: Iterator[Panel]) -> None:
            if part.heads.start <= head < part.heads.stop:
                work(part, filled)

        panels.each(mine)
        return panels


def _within(positions: npt.NDArray[np.int64], piece: slice) -> slice:
    start, stop = np.searchsorted(positions, (piece.start, piece.stop))
    return slice(int(start), int(stop))


@torch.no_grad()
def reach(model: Model, ids: Sequence[int], layer: int, edits: Sequence[Edit] = ()) -> Layer:
    """Run a model on one prompt up to one layer, and stop there.

    Parameters
    ----------
    model
        A model from `load_model`.
    ids
        Token ids of the prompt.
    layer
        The layer.
    edits
        Edits on the heads, applied in order.

    Returns
    -------
    The layer, which holds its queries and keys: memory linear in the prompt.

    Raises
    ------
    HeadscopeError
        For a layer that the model does not have or that has no attention map, a prompt that is too
        long, edits that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from headscope.probes import load_model
    >>> found = reach(load_model("headscope/bundled"), [0, 5, 6, 5], layer=2)
    >>> float(found.weights(3, np.arange(3, 4), np.arange(4)).sum().round(4))
    1.0
    """
    model.check_lengths([len(ids)])
    if layer not in model.geometry.attending:
        known = ", ".join(map(str, model.geometry.attending))
        raise InvalidInput(f"layer: {layer} has no attention map; layers with one are {known}")
    for edit in edits:
        edit.check(model.geometry)
    reader = Reader(Request(stats=()), edits)

    def receive(call: Call) -> Tensor:
        if call.layer == layer:
            raise _Reached(call)
        return reader(call)

    try:
        with installed(model, receive):
            call_model(model, torch.tensor([list(ids)]), head=False)
    except _Reached as reached:
        # Weights need no values, which are as large as the keys.
        call = replace(reached.call, value=reached.call.value[..., :0].clone())
        return Layer(call, reader.inside(call))
    raise UnsupportedModel(f"model: layer {layer} of {model.name} asked for no attention; refused")
