"""Head classes: recency, streaming, retrieval, special-token and broad heads, by four detectors.

Each detector says whether a head needs keys far back (full) or not (streaming): the mass that its
attention keeps under candidate masks (first and last keys, special tokens, heavy hitters); the
attention to earlier copies of a token and to what follows them; a gate learned for every KV head,
which mixes full with streaming attention and is pushed to 0; and what the answers lose when the
head itself is given the window. The last one is causal, and all are compared.

Sources: FastGen, Model Tells You What to Discard (masks; recovered mass); RecurFormer (recency);
RazorAttention (echo and induction scores); Xiao et al., DuoAttention (2410.10819), for the gates,
where the squared error is bare and 2,000 steps are taken on passkeys of 32 tokens.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime import taxonomy
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, Results, label, marked, require
from headscope.analyses._stats.length_trend import Array, mean
from headscope.analyses.head_roles import _window_gates
from headscope.analyses.head_roles._answered import Answered
from headscope.analyses.head_roles._masks import MASKS
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import percent
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ("received", "target_mass")
QUICK = {"first": 1, "recent": 2, "gate_steps": 2}
SUPPORTS = {"hybrid"}
TARGETS = ("duplicate", "induction")
TASK = "induction"
PROMPTS = 24

DETECTORS = ("mass", "echo", "gate", "window")
CONDITIONS = ("intact", "streaming heads windowed", "as many others windowed", "all windowed")
# Variable and title of each candidate mask, in the order of `_masks.MASKS`.
MASSES = {
    "special": ("special_mass", "Mass on special tokens"),
    "recent": ("recent_mass", "Mass on the last keys"),
    "first + recent": ("streaming_mass", "Mass on the first and the last keys"),
    "special + recent": ("special_recent_mass", "Mass on special, first and last keys"),
    "frequent": ("frequent_mass", "Mass on special keys and heavy hitters"),
    "frequent + recent": ("frequent_recent_mass", "Mass on special, last keys and heavy hitters"),
}
# Class of each mask that stands for a head; heads that need another one are broad.
CLASSES = {
    "special": "special-token",
    "recent": "recency",
    "first + recent": "streaming",
    "special + recent": "streaming",
}


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    first: Annotated[int, AtLeast(1)] = 4,
    recent: Annotated[int, AtLeast(1)] = 16,
    least_mass: Annotated[float, Between(0, 1)] = 0.9,
    least_score: Annotated[float, Between(0, 1)] = 0.3,
    least_cost: float = 0.01,
    frequent: Annotated[float, Between(0, 1)] = 0.2,
    gate_steps: Annotated[int, AtLeast(1)] = 24,
    gate_rate: float = 0.1,
    gate_weight: float = 0.05,
    window_prompts: Annotated[int, AtLeast(1)] = 2,
    seed: int = 0,
) -> xr.Dataset:
    """Class every head by the keys that it needs, and compare four detectors.

    Parameters
    ----------
    capture
        Capture of the task with ``received`` and ``target_mass`` of the rules ``duplicate`` and
        ``induction``.
    model
        Model that was captured; causal.
    task
        Prompts whose questions need keys farther back than ``recent``. The gates learn on the
        first third of them; the windows are checked on the others.
    first, recent
        First keys and last keys that a streaming head sees.
    least_mass
        Mean share of the attention that a mask must keep to stand for a head, 0 to 1.
    least_score
        Weight on earlier copies, or on what follows them, from which a head is a retrieval head.
    least_cost
        Loss of the answers, in nats, from which a window costs something.
    frequent
        Share of the keys that counts as heavy hitters of a head.
    gate_steps, gate_rate, gate_weight
        Steps and rate of Adam, and the weight of the mean gate in its loss.
    window_prompts
        Number of prompts for the window of every single head.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with the mass kept under six masks (layer, head; ``streaming_mass`` and others),
    ``echo`` and ``induction`` (layer, head; share of weight), ``gate`` (layer, head; one number a
    KV head), ``window_cost`` (layer, head; nats an answer), ``full_votes`` (layer, head; how many
    of the first three detectors call it full), ``agreement`` (one, other; Cohen's κ) and
    ``window_loss`` (condition; nats an answer). Averages carry 95 % intervals over prompts. The
    coordinates ``head_type``, ``stage``, ``evidence`` and ``method`` (layer, head) hold the class.
    """
    require(capture, NEEDS, "classes", ("self",))
    missing = [rule for rule in TARGETS if rule not in capture["target"].values]
    if missing:
        raise NotApplicable(
            f"capture: classes needs target_mass of the rule {missing[0]!r}; give targets"
        )
    prompts = Answered(capture, model, task, first + recent)
    third = max(1, len(prompts.ids) // 3)
    tested = list(range(third, len(prompts.ids))) or [0]
    single = tested[:window_prompts]
    masses = prompts.masses(frequent, first, recent)
    weights = {"echo": _weights(capture, "duplicate"), "induction": _weights(capture, "induction")}
    training = _window_gates.Training(gate_steps, gate_rate, gate_weight, first, recent)
    positions = [[question.at for question in row] for row in prompts.questions[:third]]
    gates, losses = _window_gates.learn(model, prompts.ids[:third], positions, training)
    measured, question_positions = (
        [rows[row] for row in single] for rows in (prompts.ids, prompts.question_positions)
    )
    loss_of = partial(prompts.loss, single)
    cost = _window_gates.window_cost(model, measured, question_positions, loss_of, first, recent)
    gate = np.repeat(gates, model.heads // model.kv_heads, axis=1)

    window = f"first {first} and last {recent} keys"
    results = Results(capture, seed=seed)
    _add_masses(results, masses, frequent, first + recent, window)
    _add_copying(results, weights)
    results.add(
        "gate", GRID, gate, "Learned gate: 1 needs full attention", *SHARE,
        source="DuoAttention 2410.10819",
        convention=f"one a KV head; out = α·full + (1−α)·streaming ({window}); {gate_steps} "
        f"steps; relative squared error of the last hidden states + {gate_weight:g} · mean α",
        **taxonomy.attributes("retrieval", "learned"),
    )  # fmt: skip
    results.add_mean(
        "window_cost", GRID, cost, "Cost of giving the head a window", "nats an answer",
        "diverging", convention=f"−log p of the answers with {window}, minus intact",
        **taxonomy.attributes("streaming", "window"),
    )  # fmt: skip

    has_gate = ~np.isnan(gate)
    streaming_mass = results["streaming_mass"].values
    retrieving = np.maximum(results["echo"].values, results["induction"].values) >= least_score
    full = {
        "mass": streaming_mass < least_mass,
        "echo": retrieving,
        "gate": gate > 0.5,
        "window": results["window_cost"].values >= least_cost,
    }
    votes = np.sum([full[name] for name in DETECTORS[:3]], axis=0)
    results.add_all(
        ("full_votes", GRID, np.where(has_gate, votes, np.nan),
         "Detectors that call the head full", ("detectors", "sequential", 0, 3),
         "of mass, echo and gate; a streaming head has 0 or 1"),
        ("agreement", ("one", "other"), _agreement([full[name][has_gate] for name in DETECTORS]),
         "Agreement of detectors on which heads are full", ("Cohen's κ", "diverging", -1, 1),
         f"full: mass < {least_mass:g} under the window; echo or induction ≥ "
         f"{least_score:g}; gate > 0.5; window cost ≥ {least_cost:g} nats"),
    )  # fmt: skip

    mask_masses = np.stack([results[MASSES[mask][0]].values for mask in MASKS])
    # The cheapest mask that keeps enough.
    kinds = np.select(
        [~has_gate, retrieving, *(mask_masses >= least_mass)],
        ["", "retrieval", *(CLASSES.get(mask, "broad") for mask in MASKS)],
        "broad",
    )
    streaming = marked(has_gate & (votes <= 1))
    loss, verdict = prompts.windows(
        tested, streaming, marked(has_gate & (votes > 1)), streaming_mass, first, recent, seed
    )
    results.add_mean(
        "window_loss", ("condition",), loss, "Loss of the answers with heads windowed",
        "nats an answer", "sequential", 0, evidence="causal", note=verdict.text,
        convention=f"{window}; prompts that the gates have not learned on ({len(tested)})",
    )  # fmt: skip
    classes = dict.fromkeys((*CLASSES.values(), "retrieval", "broad"))
    return results.dataset(
        {
            "one": list(DETECTORS),
            "other": list(DETECTORS),
            "condition": list(CONDITIONS),
            **taxonomy.coordinates(kinds, "scoring"),
        },
        heads_by_type={kind: [label(head) for head in marked(kinds == kind)] for kind in classes},
        streaming_heads=[label(head) for head in streaming],
        gate_loss=[round(losses[0], 5), round(losses[-1], 5)],
        verdict=verdict,
    )


def _add_masses(results: Results, masses: Array, frequent: float, start: int, window: str) -> None:
    """Add the mass that attention keeps under each mask."""
    for row, mask in enumerate(MASKS):
        name, title = MASSES[mask]
        results.add_mean(
            name, GRID, masses[:, row], title, *SHARE, source="FastGen",
            convention=f"mean over queries from {start} on; {window}; special: "
            f"special tokens of the tokenizer; heavy hitters: the {percent(frequent)} of keys "
            "with most weight", **taxonomy.attributes(CLASSES.get(mask, "broad"), "scoring"),
        )  # fmt: skip


def _add_copying(results: Results, weights: Mapping[str, Array]) -> None:
    """Add the attention to earlier copies of a token, and to what follows them."""
    for name, title, kind in (
        ("echo", "Attention to earlier copies of the token", "duplicate-token"),
        ("induction", "Attention to the token after an earlier copy", "induction"),
    ):
        results.add_mean(
            name, GRID, weights[name], title, *SHARE, source="RazorAttention",
            convention="mean over the queries that have a target",
            **taxonomy.attributes(kind, "scoring"),
        )  # fmt: skip


def _agreement(judgements: list[NDArray[np.bool_]]) -> list[list[float]]:
    """Return Cohen's κ of every two detectors, NaN where both say the same of every head."""
    from sklearn.metrics import cohen_kappa_score

    def kappa(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
        if len(np.unique([first, second])) < 2:
            return float("nan")
        return float(cohen_kappa_score(first, second))

    return [[kappa(first, second) for second in judgements] for first in judgements]


def _weights(capture: xr.Dataset, rule: str) -> Array:
    """Average the weight on the targets of a rule (prompt, layer, head); 0 without any target."""
    mass = capture["target_mass"].sel(target=rule)
    return np.nan_to_num(mean(mass.transpose("prompt", "layer", "head", "query").values))
