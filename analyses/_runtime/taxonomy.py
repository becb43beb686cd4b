"""The vocabulary of head types: the stage of the survey, and how each number is found.

The survey orders heads by the stage they serve (knowledge recalling, in-context identification,
latent reasoning, expression preparation) and ways of finding them by whether a model of the heads
is made: modeling-free (the run is changed: ablation, replacement) or modeling-required
(training-free: scores; training-required: probes, learned gates). Where headscope has placed a type
itself, it says so.

Source: Attention Heads of Large Language Models: A Survey.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = (
    "knowledge recalling",
    "in-context identification",
    "latent reasoning",
    "expression preparation",
)
# Evidence that a method gives, and its place in the survey.
METHODS = {
    "scoring": ("correlational", "modeling-required, training-free: scoring"),
    "learned": ("learned", "modeling-required, training-required: learned gate"),
    "ablation": ("causal", "modeling-free: zero ablation"),
    "window": ("causal", "modeling-free: attention limited to a window"),
}


@dataclass(frozen=True)
class Term:
    """A head type: its stage, and who placed it there."""

    stage: str
    placed_by: str = "survey"


OURS = "headscope"
TERMS = {
    "previous-token": Term(STAGES[1]),
    "next-token": Term(STAGES[1], OURS),
    "duplicate-token": Term(STAGES[1]),
    "retrieval": Term(STAGES[1]),
    "recency": Term(STAGES[1], OURS),
    "streaming": Term(STAGES[1], OURS),
    "special-token": Term(STAGES[1], OURS),
    "broad": Term(STAGES[1], OURS),
    "bos": Term(STAGES[1], OURS),
    "induction": Term(STAGES[2]),
    "name-mover-like": Term(STAGES[3], OURS),
    "copy-suppression": Term(STAGES[3], OURS),
}


def attributes(kind: str, method: str) -> dict[str, Any]:
    """Return what a score says about its head type: type, stage, evidence and method."""
    evidence, way = METHODS[method]
    return {"head_type": kind, **vars(TERMS[kind]), "evidence": evidence, "method": way}


def coordinates(kinds: NDArray[Any], method: str) -> dict[str, Any]:
    """Return coordinates over layer and head for a grid of head types; empty names have none."""
    stages = [[TERMS[one].stage if one else "" for one in row] for row in kinds.tolist()]
    evidence, way = METHODS[method]
    grid = ("layer", "head")
    return {
        "head_type": (grid, kinds),
        "stage": (grid, np.array(stages)),
        "evidence": (grid, np.where(kinds == "", "", evidence)),
        "method": (grid, np.where(kinds == "", "", way)),
    }
