"""Fixed patterns in place of heads' own, and by how much the output moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime.results import Results

if TYPE_CHECKING:
    from headscope.probes.interventions import FixPattern
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

# A fixed pattern is a map of N×N.
LONGEST = 512


def reason(capture: xr.Dataset) -> str:
    """Return why patterns cannot be fixed on these prompts; empty where they can."""
    longest = int(capture["length"].values.max())
    if longest > LONGEST:
        return f"prompts of {longest} tokens are longer than {LONGEST}"
    if "sink_logit" in capture.coords:
        return "rows of a model with learned sinks do not sum to 1"
    return ""


def fix(patterns: Mapping[tuple[int, int], NDArray[Any]]) -> list[FixPattern]:
    """Return the edits that give heads fixed patterns."""
    import torch

    from headscope.probes.interventions import FixPattern

    return [
        FixPattern(head=head, values=torch.from_numpy(np.ascontiguousarray(values)))
        for head, values in patterns.items()
    ]


def divergences(
    model: Model, capture: xr.Dataset, prompt: int, sets: Sequence[Sequence[Edit]]
) -> list[float]:
    """Return by how much the output distribution moves under each set of edits, in nats.

    The Kullback-Leibler divergence of the edited from the clean model's distribution over the
    vocabulary, averaged over the positions of one prompt.
    """
    import torch

    from headscope.probes.attention.forward import logits

    length = int(capture["length"].values[prompt])
    ids = torch.from_numpy(capture["token_id"].values[prompt, :length].astype(np.int64))[None]
    with torch.no_grad():
        clean, *edited = (
            logits(model, ids, edits)[0].double().log_softmax(-1) for edits in ((), *sets)
        )
    return [float((clean.exp() * (clean - moved)).sum(-1).mean()) for moved in edited]


def add_moved(
    results: Results, moved: NDArray[np.float64], title: str, rule: str, **about: Any
) -> None:
    """Add the divergences (prompt, condition) of a causal check; ``rule`` names its heads."""
    convention = (
        "KL divergence from the intact output, mean over the positions of "
        f"{len(moved)} prompts; {rule}"
    )
    results.add_mean(
        "moved", ("condition",), moved, title, "nats", "sequential", 0, evidence="causal",
        convention=convention, **about,
    )  # fmt: skip
