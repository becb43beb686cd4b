"""Head classes: recency, streaming, retrieval, special-token and broad heads, by four detectors.

Each detector says whether a head needs keys far back (full) or not (streaming): the mass that its
attention keeps under candidate masks (first and last keys, special tokens, heavy hitters); the
attention to earlier copies of a token and to what follows them; a gate learned for every KV head,
which mixes full with streaming attention and is pushed to 0; and what the answers lose when the
head itself is given the window. The last one is causal, and all are held against each other.

Sources: FastGen, Model Tells You What to Discard (masks; recovered mass); RecurFormer (recency);
RazorAttention (echo and induction scores); Xiao et al., DuoAttention (2410.10819), for the gates,
where the squared error is bare and 2,000 steps are taken on passkeys of 32 tokens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, label, require, variable
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ("received", "target_mass")
TARGETS = ("duplicate", "induction")
TASK = "induction"
PROMPTS = 16

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
    first: int = 4,
    recent: int = 16,
    least_mass: float = 0.9,
    least_score: float = 0.3,
    least_cost: float = 0.01,
    frequent: float = 0.2,
    gate_steps: int = 24,
    gate_rate: float = 0.1,
    gate_weight: float = 0.05,
    window_prompts: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Class every head by the keys that it needs, and hold four detectors against each other.

    Parameters
    ----------
    capture
        Capture of the task with ``received`` and ``target_mass`` of the rules ``duplicate`` and
        ``induction``.
    model
        Model that was captured; causal.
    task
        Prompts whose questions need keys farther back than ``recent``. The gates learn on the
        first half of them; the windows are checked on the others.
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
    progress
        Called with (done, total) steps.

    Returns
    -------
    Dataset with the mass kept under six masks (layer, head; ``streaming_mass`` and others),
    ``echo`` and ``induction`` (layer, head; share of weight), ``gate`` (layer, head; one number a
    KV head), ``window_cost`` (layer, head; nats an answer), ``full_votes`` (layer, head; how many
    of the first three detectors call it full), ``agreement`` (one, other; Cohen's κ) and
    ``window_loss`` (condition; nats an answer). Averages carry 95 % intervals over prompts. The
    coordinates ``head_type``, ``stage``, ``evidence`` and ``method`` (layer, head) hold the class.

    Raises
    ------
    NotApplicable
        When the capture lacks something, an option is out of range, the model is not causal, or
        no prompt is longer than the keys that a streaming head sees.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> options = {"gate_steps": 1, "window_prompts": 1}
    >>> result = execute("classes", load_model("headscope/bundled"), n=2, options=options)
    >>> result["agreement"].dims
    ('one', 'other')
    """
    from headscope.analyses._runtime import taxonomy
    from headscope.analyses._stats.kappa import kappa
    from headscope.analyses.head_roles import _window_gates
    from headscope.analyses.head_roles._answered import Answered
    from headscope.analyses.head_roles._masks import MASKS

    for name, value in (
        ("least_mass", least_mass),
        ("least_score", least_score),
        ("frequent", frequent),
    ):
        options.between(name, value, 0, 1)
    for name, count in (
        ("first", first), ("recent", recent), ("gate_steps", gate_steps),
        ("window_prompts", window_prompts),
    ):  # fmt: skip
        options.at_least(name, count, 1)
    require(capture, NEEDS, "classes")
    missing = [each for each in TARGETS if each not in capture["target"].values]
    if missing:
        raise NotApplicable(
            f"capture: classes needs target_mass of the rule {missing[0]!r}; give targets"
        )
    held = Answered(capture, model, task, first + recent)
    half = max(1, len(held.ids) // 2)
    tested = list(range(half, len(held.ids))) or [0]
    heads = model.layers * model.heads
    total = gate_steps + heads * min(window_prompts, len(tested)) + len(CONDITIONS)
    done = 0

    def step(count: int = 1) -> None:
        nonlocal done
        done = min(done + count, total)
        if progress is not None:
            progress(done, total)

    masses = held.masses(frequent, first, recent)
    echo, induction = (_weights(capture, rule) for rule in TARGETS)
    training = _window_gates.Training(gate_steps, gate_rate, gate_weight, first, recent)
    gates, losses = _window_gates.learn(
        model, held.ids[:half], [held.places(row) for row in range(half)], training, step
    )
    gate = np.repeat(gates, model.heads // model.kv_heads, axis=1)
    single = tested[:window_prompts]
    cost = _window_gates.window_cost(
        model, [held.ids[row] for row in single], partial(held.loss, single), first, recent, step
    )

    grid = ("layer", "head")
    window = f"first {first} and last {recent} keys"
    score = partial(taxonomy.attributes, method="scoring")
    variables: dict[str, xr.Variable] = {}
    for row, mask in enumerate(MASKS):
        name, title = MASSES[mask]
        variables |= averaged(
            name, grid, masses[:, row], title, "share", "sequential", 0, 1, seed=seed,
            convention=f"mean over queries from {first + recent} on; {window}; special: special "
            f"tokens of the tokenizer; heavy hitters: the {frequent:.0%} of keys with most weight",
            source="FastGen", **score(CLASSES.get(mask, "broad")),
        )  # fmt: skip
    for name, title, samples, kind in (
        ("echo", "Attention to earlier copies of the token", echo, "duplicate-token"),
        ("induction", "Attention to the token after an earlier copy", induction, "induction"),
    ):
        variables |= averaged(
            name, grid, samples, title, "share", "sequential", 0, 1, seed=seed,
            convention="mean over the queries that have a target", source="RazorAttention",
            **score(kind),
        )  # fmt: skip
    variables["gate"] = variable(
        grid, gate, "Learned gate: 1 needs full attention", "share", "sequential", 0, 1,
        convention=f"one a KV head; out = α·full + (1−α)·streaming ({window}); {gate_steps} steps; "
        f"relative squared error of the last hidden states + {gate_weight:g} · mean α",
        source="DuoAttention 2410.10819", **taxonomy.attributes("retrieval", "learned"),
    )  # fmt: skip
    variables |= averaged(
        "window_cost", grid, cost, "Cost of giving the head a window", "nats an answer",
        "diverging", seed=seed, convention=f"−log p of the answers with {window}, minus intact",
        **taxonomy.attributes("streaming", "window"),
    )  # fmt: skip

    mean = {name: variables[name].values for name in variables}
    retrieving = np.maximum(mean["echo"], mean["induction"]) >= least_score
    full = {
        "mass": mean["streaming_mass"] < least_mass,
        "echo": retrieving,
        "gate": gate > 0.5,
        "window": mean["window_cost"] >= least_cost,
    }
    known = ~np.isnan(gate)
    votes = np.sum([full[name] for name in DETECTORS[:3]], axis=0)
    variables["full_votes"] = variable(
        grid, np.where(known, votes, np.nan), "Detectors that call the head full", "detectors",
        "sequential", 0, 3, convention="of mass, echo and gate; a streaming head has 0 or 1",
    )  # fmt: skip
    table = [
        [kappa(full[one][known], full[other][known]) for other in DETECTORS] for one in DETECTORS
    ]
    variables["agreement"] = variable(
        ("one", "other"), table, "Agreement of detectors on which heads are full",
        "Cohen's κ", "diverging", -1, 1,
        convention=f"full: mass < {least_mass:g} under the window; echo or induction ≥ "
        f"{least_score:g}; gate > 0.5; window cost ≥ {least_cost:g} nats",
    )  # fmt: skip

    kinds = _kinds(np.stack([mean[MASSES[one][0]] for one in MASKS]), retrieving, least_mass, known)
    streaming = [(int(one), int(two)) for one, two in np.argwhere(known & (votes <= 1))]
    others = [(int(one), int(two)) for one, two in np.argwhere(known & (votes > 1))]
    checked, note = held.windows(
        tested, streaming, others, mean["streaming_mass"], first, recent, seed
    )
    step(len(CONDITIONS))
    variables |= averaged(
        "window_loss", ("condition",), checked, "Loss of the answers with heads windowed",
        "nats an answer", "sequential", 0, seed=seed, evidence="causal", note=note,
        convention=f"{window}; prompts that the gates have not learned on ({len(tested)})",
    )  # fmt: skip
    found = list(dict.fromkeys((*CLASSES.values(), "retrieval", "broad")))
    return dataset(
        capture,
        variables,
        {
            "one": list(DETECTORS),
            "other": list(DETECTORS),
            "condition": list(CONDITIONS),
            **taxonomy.coordinates(kinds, "scoring"),
        },
        heads_by_type={
            kind: [label((int(one), int(two))) for one, two in np.argwhere(kinds == kind)]
            for kind in found
        },
        streaming_heads=[label(head) for head in streaming],
        gate_loss=[round(losses[0], 5), round(losses[-1], 5)],
        note=note,
    )


def _weights(capture: xr.Dataset, rule: str) -> NDArray[np.float64]:
    """Average the weight on the targets of a rule (prompt, layer, head); 0 without any target."""
    mass = (
        capture["target_mass"].sel(target=rule).transpose("prompt", "layer", "head", "query").values
    )
    known = ~np.isnan(mass)
    count = np.maximum(known.sum(-1), 1)
    return np.asarray(np.where(known, mass, 0.0).sum(-1) / count, dtype=np.float64)


def _kinds(
    masses: NDArray[np.float64],
    retrieving: NDArray[np.bool_],
    least: float,
    known: NDArray[np.bool_],
) -> NDArray[Any]:
    """Name the class of every head: retrieval, or by the cheapest mask that keeps enough."""
    from headscope.analyses.head_roles._masks import MASKS

    kinds = np.full(retrieving.shape, "broad", dtype="<U13")
    for row, mask in reversed(list(enumerate(MASKS))):
        kinds[masses[row] >= least] = CLASSES.get(mask, "broad")
    kinds[retrieving] = "retrieval"
    return np.where(known, kinds, "")
