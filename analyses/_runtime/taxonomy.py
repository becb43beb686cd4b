"""The vocabulary of head types: the stage of the survey, and how each number is found.

The survey orders heads by the stage they serve (knowledge recalling, in-context identification,
latent reasoning, expression preparation) and ways of finding them by whether a model of the heads
is made: modeling-free (the run is changed: ablation, replacement) or modeling-required
(training-free: scores; training-required: probes, learned gates). Where headscope has placed a type
itself, it says so. An analysis that chooses heads by a property that serves no one stage (how sharp
they are, which group they fall into) says ``no single stage``.

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
NO_STAGE = "no single stage"
# Evidence that a method gives, and its place in the survey.
METHODS = {
    "scoring": ("correlational", "modeling-required, training-free: scoring"),
    "learned": ("learned", "modeling-required, training-required: learned gate"),
    "ablation": ("causal", "modeling-free: zero ablation"),
    "window": ("causal", "modeling-free: attention limited to a window"),
    "rescaling": ("causal", "modeling-free: attention weights scaled"),
    "probe": ("learned", "modeling-required, training-required: probe"),
}


@dataclass(frozen=True)
class Term:
    """A head type: its stage, who placed it there, and by which method heads are named."""

    stage: str
    placed_by: str = "survey"
    method: str = "scoring"

    @property
    def evidence(self) -> str:
        """Kind of evidence that the method gives."""
        return METHODS[self.method][0]

    @property
    def way(self) -> str:
        """The method in the words of the survey."""
        return METHODS[self.method][1]


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
# What the other heads are that an analysis names.
NAMED_BY = {
    **dict.fromkeys(
        ("classes", "distractors", "latent_retrieval", "lookback", "needle_sweep", "offsets",
         "position_bias", "query_focus", "retrieval", "segments", "sinks", "task_vectors",
         "token_classes"),
        Term(STAGES[1], OURS),
    ),
    **dict.fromkeys(
        ("atlas", "concentration", "context_reliance", "contrast", "entropy", "frequencies",
         "lifetimes", "positionality", "preplan_anchor", "prompt_pairs", "similarity", "span"),
        Term(NO_STAGE, OURS),
    ),
    "probing": Term(STAGES[1], OURS, "probe"),
    "sink_calibration": Term(STAGES[1], OURS, "rescaling"),
}  # fmt: skip


def term(analysis: str, name: str) -> Term:
    """Return stage and method of the heads that an analysis calls by a name.

    >>> term("head_types", "previous_token").stage, term("entropy", "sharp").stage
    ('in-context identification', 'no single stage')
    """
    # A run may hold what another version of the program has named.
    return TERMS.get(name.replace("_", "-")) or NAMED_BY.get(analysis, Term(NO_STAGE, OURS))


def catalogue() -> list[tuple[str, Term]]:
    """List every type of head with its stage, those of the survey first, stage by stage.

    >>> dict(catalogue())["as `entropy` names them"].stage
    'no single stage'
    """
    own = {f"as `{analysis}` names them": placed for analysis, placed in NAMED_BY.items()}
    order = (*STAGES, NO_STAGE)
    return [
        *sorted(TERMS.items(), key=lambda item: order.index(item[1].stage)),
        *sorted(own.items(), key=lambda item: order.index(item[1].stage)),
    ]


def attributes(kind: str, method: str) -> dict[str, Any]:
    """Return what a score says about its head type: type, stage, evidence and method."""
    evidence, direction = METHODS[method]
    placed = {name: getattr(TERMS[kind], name) for name in ("stage", "placed_by")}
    return {"head_type": kind, **placed, "evidence": evidence, "method": direction}


def coordinates(kinds: NDArray[Any], method: str) -> dict[str, Any]:
    """Return coordinates over layer and head for a grid of head types; empty names have none."""
    stages = [[TERMS[kind].stage if kind else "" for kind in row] for row in kinds.tolist()]
    evidence, direction = METHODS[method]
    grid = ("layer", "head")
    return {
        "head_type": (grid, kinds),
        "stage": (grid, np.array(stages)),
        "evidence": (grid, np.where(kinds == "", "", evidence)),
        "method": (grid, np.where(kinds == "", "", direction)),
    }
