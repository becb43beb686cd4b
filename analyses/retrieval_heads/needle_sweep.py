"""Needle sweep: which heads copy a planted fact at every length and depth, and what they carry.

A fact is planted at several depths of haystacks of several lengths. In each cell of the grid stand
the model's accuracy and every head's retrieval score, by both conventions (set: the paper's text;
multiset: its released code). Always-on heads copy in at least half of the cells. The masking curve
takes out the K best heads, and K random others.

Source: Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (2404.15574).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headscope.analyses._interventions import causal_check
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, interval, label, top, variable
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.kernels.errors import InvalidInput, NotApplicable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "needle"
PROMPTS = 8

SOURCE = "Wu et al. 2404.15574"
GRID = ("length", "depth")


def run(
    model: Model,
    task: Task,
    *,
    lengths: str = "64,128",
    depths: int = 3,
    cell_prompts: int = 2,
    span: int = 2,
    threshold: float = 0.1,
    always: float = 0.5,
    least_recalled: float = 0.5,
    counts: str = "1,2,5,8",
    masking: str = "zero",
    draws: int = 3,
    seed: int = 0,
    progress: causal_check.Progress | None = None,
) -> xr.Dataset:
    """Plant needles over a grid of lengths and depths; score every head in every cell.

    Each word of the needle is one decode step, read with the right words before it (teacher
    forcing). Only the asked rows are read, so no map is built at any length.

    Parameters
    ----------
    model
        Model that reads the needles.
    task
        The task ``needle``: its seed, and how many prompts the masking curve has. They are drawn
        at the shortest length, at depths spread from 0 to 1.
    lengths
        Words in a prompt, separated by commas.
    depths
        Number of depths, spread evenly from 0 (start) to 1 (end).
    cell_prompts
        Needles in each cell of the grid.
    span
        Words in a needle's value, each one decode step.
    threshold
        Score above which a head retrieves.
    always
        Share of the cells in which an always-on head retrieves.
    least_recalled
        Prompts count only when the model generates more than this share of the needle's tokens.
    counts
        Numbers K of heads taken out in the masking curve, separated by commas; each at most half of
        the heads.
    masking
        ``zero`` (the heads' outputs are zero) or ``uniform`` (they attend everywhere alike, as in
        the released code).
    draws
        Random sets of K other heads for each K.
    seed
        Seed of the bootstrap and of the random sets.
    progress
        Called with (done, total) of the cells, then of the ablations.

    Returns
    -------
    Dataset with ``accuracy`` (length, depth), ``retrieval_set`` and ``retrieval_multiset`` (length,
    depth, layer, head), ``mean_set`` and ``mean_multiset`` (layer, head), ``looked`` (layer, head;
    share of steps, whatever is generated), ``always_on`` (layer, head; share of cells), ``masking``
    (count, condition), each average with its 95 % interval over prompts; and ``always_on_share``
    (percent of heads). Scores are missing where nothing is recalled.

    Raises
    ------
    NotApplicable
        For another task, options out of range, or lengths beyond the context.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> options = {"lengths": "32,48", "depths": 2, "cell_prompts": 1, "counts": "1", "draws": 1}
    >>> result = execute("needle_sweep", load_model("headscope/bundled"), n=2, options=options)
    >>> result["accuracy"].dims
    ('length', 'depth')
    """
    from headscope.analyses.retrieval_heads import _head_masking
    from headscope.probes import capture
    from headscope.probes.prompts import tasks

    model.check_predicts()
    if task.name != TASK:
        raise NotApplicable(f"task: {task.name} has no length or depth to sweep; use needle")
    words, steps = numbers("lengths", lengths), numbers("counts", counts)
    for name, value, least in (
        ("depths", depths, 1), ("cell_prompts", cell_prompts, 1), ("span", span, 1),
        ("draws", draws, 1),
    ):  # fmt: skip
        options.at_least(name, value, least)
    for name, share in (
        ("threshold", threshold), ("always", always), ("least_recalled", least_recalled),
    ):  # fmt: skip
        options.between(name, share, 0, 1)
    options.one_of("masking", masking, _head_masking.MASKINGS)
    places = [0.5] if depths == 1 else [float(place) for place in np.linspace(0, 1, depths)]

    def draw(number: int, length: int, depth: float | None = None) -> Task:
        return tasks.make(
            TASK, model.tokenizer, number, task.seed, length=length, depth=depth, span=span
        )

    cells = [[draw(cell_prompts, length, depth) for depth in places] for length in words]
    sets, multisets, recalled, right, digest = _read(model, cells, progress)
    counted = recalled > least_recalled
    said = (
        f"decode step = word of the needle, teacher-forced; prompts with more than "
        f"{least_recalled:.0%} of the needle generated count ({int(counted.sum())} of "
        f"{counted.size})"
    )
    forms = {
        "set": (sets, 1, "|g ∩ k| / |k|, as in the paper"),
        "multiset": (multisets, None,
                     "copying steps / needle length, as in the released code; can exceed 1"),
    }  # fmt: skip
    units, title = "share of the needle", "Retrieval score"
    variables = averaged(
        "accuracy", GRID, np.moveaxis(recalled, 2, 0), "Needle tokens that the model generates",
        "share", "sequential", 0, 1, seed=seed, source=SOURCE,
        convention=f"{cell_prompts} needles of {span} words in each cell, teacher-forced",
    )  # fmt: skip
    variables |= averaged(
        "looked", ("layer", "head"), right.reshape(-1, *right.shape[3:]),
        "Decode steps with the largest weight on the right word", "share of steps", "sequential",
        0, 1, seed=seed, source=SOURCE, convention="whatever is generated; every prompt counts",
    )  # fmt: skip
    means: dict[str, NDArray[np.float64]] = {}
    for form, (scores, high, formula) in forms.items():
        kept = np.where(counted[..., None, None], scores, np.nan)
        means[form], lower, upper = bootstrap(np.moveaxis(kept, 2, 0), seed=seed)
        convention = f"{formula}; {said}"
        variables |= interval(
            f"retrieval_{form}", (*GRID, "layer", "head"), means[form], lower, upper,
            f"{title} ({form}) by length and depth", units, "sequential", 0, high,
            convention=convention, source=SOURCE,
        )  # fmt: skip
        variables |= averaged(
            f"mean_{form}", ("layer", "head"), kept.reshape(-1, *kept.shape[3:]),
            f"{title} ({form}), mean of all prompts", units, "sequential", 0, high, seed=seed,
            convention=convention, source=SOURCE,
        )  # fmt: skip
    cell = means["set"].reshape(-1, *sets.shape[3:])
    known = ~np.isnan(cell).all((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        passing = (cell > threshold)[known].sum(0) / known.sum()
    # A layer without attention has no score.
    on = np.where(np.isnan(cell).all(0), np.nan, passing)
    rule = (
        f"share of the {int(known.sum())} cells with a recalled needle where the mean set score "
        f"exceeds {threshold:g}"
    )
    variables |= {
        "always_on": variable(
            ("layer", "head"), on, "Cells in which the head retrieves", "share of cells",
            "sequential", 0, 1, convention=rule, source=SOURCE,
        ),
        "always_on_share": variable(
            (), (on[~np.isnan(on)] >= always).mean() * 100 if known.any() else np.nan,
            "Heads that are always on", "%", "sequential", 0, 100,
            convention=f"{rule}, in at least {always:.0%} of them", source=SOURCE,
        ),
    }  # fmt: skip

    coords: dict[str, list[object]] = {"length": [*words], "depth": [*places]}
    record: dict[str, object] = {"note": "The model recalls none of the needles; no curve."}
    if known.any():
        curve, axes, record = _head_masking.curve(
            model, draw(len(task), min(words)),
            top(variables["mean_set"].values, on.size), steps,
            masking=masking, draws=draws, seed=seed, source=SOURCE, progress=progress,
        )  # fmt: skip
        variables |= curve
        coords |= axes
    result = dataset(
        capture(model, cells[0][0], stats=("lse",)),
        variables,
        coords,
        convention=said,
        heads_by_type={"always on": [label(each) for each in top(on, int((on >= always).sum()))]},
        causal={"masking": record},
        note=str(record["note"]),
    )
    result.attrs.update(n_prompts=int(counted.size), prompts_sha256=digest, seed=task.seed)
    return result


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers from 1, separated by commas; in rising order, each once.

    >>> numbers("counts", "4, 1,2")
    (1, 2, 4)

    Raises
    ------
    InvalidInput
        When a part is no whole number from 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"{name}: {text!r}; give whole numbers from 1, such as 64,256")
    return tuple(sorted({int(part) for part in parts}))


def _read(
    model: Model, cells: list[list[Task]], progress: causal_check.Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], str]:
    """Score every prompt of every cell (length, depth, prompt, ...), and digest their tokens."""
    from headscope.analyses.retrieval_heads._needle_steps import look, right, score
    from headscope.probes.prompts.reading import read

    total = sum(len(row) for row in cells)
    digests, rows = [], []
    for row in cells:
        for task in row:
            given = read(model, task)
            assert given.encoded is not None
            digests.append(given.digest())
            asked = given.encoded.questions
            cell = []
            for ids, each in zip(given.ids, asked, strict=True):
                looked, generated = look(model, ids, each)
                cell.append((*score(ids, each, looked, generated), right(each, looked)))
            rows.append(cell)
            if progress is not None:
                progress(len(rows), total)
    parts = [
        np.asarray([[prompt[part] for prompt in cell] for cell in rows], dtype=np.float64)
        for part in range(4)
    ]
    shape = (len(cells), len(cells[0]))
    together = hashlib.sha256("".join(digests).encode()).hexdigest()
    sets, multisets, recalled, matched = (each.reshape(*shape, *each.shape[1:]) for each in parts)
    return sets, multisets, recalled, matched, together
