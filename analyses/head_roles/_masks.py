"""Mass recovered under candidate masks: how much of its attention a head keeps with fewer keys.

The mass on any set of keys is what attention gives out where the values are 1 on the set and 0
elsewhere, so each set of keys, other for every head, costs one value dimension of a pass that never
builds the map. What a set shares with the last keys is read the same way under their window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request, WeightEdits, attend
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.models.model import Model


@dataclass(frozen=True)
class Mask:
    """A candidate mask: sets of keys by name, and whether the last keys are kept with them."""

    sets: tuple[str, ...]
    local: bool


# From the cheapest to keep to the dearest; every later key is dropped but for these.
MASKS: Mapping[str, Mask] = {
    "special": Mask(("special",), False),
    "recent": Mask((), True),
    "first + recent": Mask(("first",), True),
    "special + recent": Mask(("special", "first"), True),
    "frequent": Mask(("special", "first", "frequent"), False),
    "frequent + recent": Mask(("special", "first", "frequent"), True),
}


def recovered(
    model: Model, ids: Sequence[int], sets: Mapping[str, NDArray[np.bool_]], recent: int, skip: int
) -> Array:
    """Return the mean mass that each mask keeps on one prompt (mask, layer, head).

    ``sets`` are the keys of each named set (layer, head, key). A mask with ``local`` keeps the
    ``recent`` last keys, the query's own included; the first ``skip`` queries, which see little
    more than those, are left out. NaN in layers without an attention map.
    """
    nothing = np.zeros((model.layers, model.heads, len(ids)), dtype=bool)
    unions = [
        torch.from_numpy(np.any([nothing, *(sets[part] for part in mask.sets)], axis=0))
        for mask in MASKS.values()
    ]
    kept = np.full((len(MASKS), model.layers, model.heads), np.nan)

    def take(call: AttentionCall, outputs: Any, z: Any) -> None:
        chosen = torch.stack([keys[call.layer] for keys in unions], dim=-1)
        inside, both, last = _masses(call, chosen, recent)
        for row, mask in enumerate(MASKS.values()):
            mass = inside[..., row]
            if mask.local:
                mass = mass + last - both[..., row]
            kept[row, call.layer] = mass[:, skip:].mean(dim=1).double().cpu().numpy()

    with torch.no_grad():
        run(model, torch.tensor([list(ids)]), Reader(Request(stats=()), (), take), head=False)
    return kept


def _masses(
    call: AttentionCall, chosen: Bool[Tensor, "head key mask"], recent: int
) -> tuple[
    Float[Tensor, "head query mask"], Float[Tensor, "head query mask"], Float[Tensor, "head query"]
]:
    """Return the mass on each set, on what it shares with the last keys, and on the last keys."""
    heads = call.query.shape[1]
    key = call.key.repeat_interleave(heads // call.key.shape[1], dim=1)
    # The last column marks every key: learned sinks leave its mass below 1.
    marks = torch.nn.functional.pad(chosen[None].to(key), (0, 1), value=1.0)
    narrow = WeightEdits(
        first=torch.zeros(heads, dtype=torch.long), recent=torch.full((heads,), recent)
    ).to(key.device)
    request = Request(stats=("recent_mass",), recent=recent)
    plain = attend(call.query, key, marks, request, call.variant())
    under = attend(call.query, key, marks, Request(stats=()), call.variant(narrow))
    last = plain["recent_mass"][0].float()
    inside = under["z"][0].float()
    both = inside[..., :-1] / inside[..., -1:] * last[..., None]
    return plain["z"][0].float()[..., :-1], both, last


def frequent(received: Array, length: int, share: float) -> NDArray[np.bool_]:
    """Mark the keys with the largest sum of weights in each head, the heavy hitters.

    ``received`` is the mean weight from the queries that see each key (layer, head, key).
    """
    queries = length - np.arange(length)
    total = np.nan_to_num(received[..., :length]) * queries
    count = max(1, int(share * length))
    marked = np.zeros(total.shape, dtype=bool)
    heaviest = np.argsort(-total, axis=-1, kind="stable")[..., :count]
    np.put_along_axis(marked, heaviest, True, axis=-1)
    return marked
