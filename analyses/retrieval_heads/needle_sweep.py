"""Needle sweep: which heads copy a planted fact at every length and depth, and what they carry.

A fact is planted at several depths of haystacks of several lengths. Each cell of the grid has the
model's accuracy and every head's retrieval score, by both conventions (set: the paper's text;
multiset: its released code). Always-on heads copy in at least half of the cells. The masking curve
masks the K best heads, and K random others.

Source: Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality (2404.15574).
"""

import hashlib
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime.options import AtLeast, Between, OneOf, numbers
from headscope.analyses._runtime.results import SHARE, ZERO_TO_ONE, Results, label, top
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.retrieval_heads import _head_masking
from headscope.analyses.retrieval_heads._needle_steps import DECODINGS, FORMS, score
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import percent
from headscope.probes import capture
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read
from headscope.probes.prompts.task import Task

NEEDS = ()
QUICK = {"draws": 2}
SUPPORTS = {"hybrid"}
TASK = "needle"
PROMPTS = 16

SOURCE = "Wu et al. 2404.15574"
GRID = ("length", "depth")


def run(
    model: Model,
    task: Task,
    *,
    decoding: Annotated[str, OneOf(tuple(DECODINGS))] = "teacher_forced",
    new_tokens: Annotated[int, AtLeast(1)] = 16,
    form: Annotated[str, OneOf(tuple(FORMS))] = "set",
    lengths: str = "64,128",
    depths: Annotated[int, AtLeast(1)] = 3,
    cell_prompts: Annotated[int, AtLeast(1)] = 2,
    span: Annotated[int, AtLeast(1)] = 2,
    threshold: Annotated[float, Between(0, 1)] = 0.1,
    always: Annotated[float, Between(0, 1)] = 0.5,
    least_recalled: Annotated[float, Between(0, 1)] = 0.5,
    counts: str = "1,2,5,8",
    masking: Annotated[str, OneOf(tuple(_head_masking.MASKINGS))] = "zero",
    draws: Annotated[int, AtLeast(1)] = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Plant needles over a grid of lengths and depths; score every head in every cell.

    Only the rows of questions are kept, so no map is built at any length.

    Parameters
    ----------
    task
        The task ``needle``: its seed, and how many prompts the masking curve has. They are drawn
        at the shortest length, at depths spread from 0 to 1.
    decoding
        ``teacher_forced`` (each word of the needle is one decode step, read with the right words
        before it) or ``greedy`` (the model answers on its own, as in the paper).
    new_tokens
        Tokens that the model writes greedily, to the end of the line at most; the released code
        allows 50.
    form
        Score that says where a head retrieves and in which order heads are masked: ``set`` (the
        paper's text) or ``multiset`` (its code).
    lengths
        Words in a prompt, separated by commas.
    depths
        Number of depths, spread evenly from 0 (start) to 1 (end).
    cell_prompts
        Needles in each cell of the grid.
    span
        Words in a needle's value.
    threshold
        Score above which a head retrieves.
    always
        Share of the cells in which an always-on head retrieves.
    least_recalled
        Prompts count only when the model generates more than this share of the needle: of its
        tokens, or the ROUGE-1 recall of the greedy answer.
    counts
        Numbers K of heads masked in the curve, separated by commas; each at most half of the heads.
    masking
        ``zero`` (the heads' outputs are zero) or ``uniform`` (they attend everywhere alike, as in
        the released code); of greedy answers, only while they are written.
    draws
        Random sets of K other heads for each K.
    seed
        Seed of the bootstrap and of the random sets.

    Returns
    -------
    Dataset with ``accuracy`` (length, depth), ``retrieval_set`` and ``retrieval_multiset`` (length,
    depth, layer, head), ``mean_set`` and ``mean_multiset`` (layer, head), ``looked`` (layer, head;
    share of steps, whatever is generated), ``always_on`` (layer, head; share of cells), ``masking``
    (count, condition), each average with its 95 % interval over prompts; and ``always_on_share``
    (percent of heads). Scores are missing where nothing is recalled.
    """
    model.check_predicts()
    if task.name != TASK:
        raise NotApplicable(f"task: {task.name} has no length or depth to sweep; use needle")
    word_counts, masked_counts = numbers("lengths", lengths), numbers("counts", counts)
    fractions = (
        [0.5] if depths == 1 else [float(fraction) for fraction in np.linspace(0, 1, depths)]
    )

    def draw(number: int, length: int, depth: float | None = None) -> Task:
        return tasks.make(
            TASK, model.tokenizer, number, task.seed, length=length, depth=depth, span=span
        )

    cells = [[draw(cell_prompts, length, depth) for depth in fractions] for length in word_counts]
    sets, multisets, recalled, matched, digest = _read(model, cells, decoding, new_tokens)
    counted = recalled > least_recalled
    rule = DECODINGS[decoding].format(least=percent(least_recalled), new_tokens=new_tokens)
    convention = f"{rule} ({int(counted.sum())} of {counted.size})"
    results = Results(capture(model, cells[0][0], stats=("lse",)), seed=seed, source=SOURCE)
    grid = ("layer", "head")
    results.add_means(
        ("accuracy", GRID, np.moveaxis(recalled, 2, 0), "Part of the needle that is generated",
         SHARE, f"{cell_prompts} needles of {span} words in each cell; {decoding}"),
        ("looked", grid, matched.reshape(-1, *matched.shape[3:]),
         "Decode steps with the largest weight on what is asked", ("share of steps", *ZERO_TO_ONE),
         "whatever is generated; every prompt counts"),
    )  # fmt: skip
    for (name, (high, formula)), scores in zip(FORMS.items(), (sets, multisets), strict=True):
        kept = np.where(counted[..., None, None], scores, np.nan)
        meaning = ("share of the needle", "sequential", 0, high)
        results.add_means(
            (f"retrieval_{name}", (*GRID, *grid), np.moveaxis(kept, 2, 0),
             f"Retrieval score ({name}) by length and depth", meaning, f"{formula}; {convention}"),
            (f"mean_{name}", grid, kept.reshape(-1, *kept.shape[3:]),
             f"Retrieval score ({name}), mean of all prompts", meaning, f"{formula}; {convention}"),
        )  # fmt: skip
    on, measured = _always_on(results[f"retrieval_{form}"].values, threshold)
    cell_rule = (
        f"share of the {measured} cells with a recalled needle where the mean {form} score "
        f"exceeds {threshold:g}"
    )
    results.add_all(
        ("always_on", grid, on, "Cells in which the head retrieves",
         ("share of cells", *ZERO_TO_ONE), cell_rule),
        ("always_on_share", (), (on[~np.isnan(on)] >= always).mean() * 100 if measured else np.nan,
         "Heads that are always on", ("%", "sequential", 0, 100),
         f"{cell_rule}, in at least {percent(always)} of them"),
    )  # fmt: skip

    coords: dict[str, Any] = {"length": [*word_counts], "depth": [*fractions]}
    note = "The model recalls none of the needles; no curve."
    record: dict[str, Any] = {"note": note}
    verdict: Verdict | None = None
    if measured:
        axes, record, verdict = _head_masking.curve(
            results, model, draw(len(task), min(word_counts)),
            top(results[f"mean_{form}"].values, on.size), masked_counts, masking=masking,
            draws=draws, decoding=decoding, new_tokens=new_tokens,
        )  # fmt: skip
        coords |= axes
        note = ""
    result = results.dataset(
        coords,
        convention=convention,
        heads_by_type={"always on": [label(head) for head in top(on, int((on >= always).sum()))]},
        causal={"masking": record},
        note=note,
        verdict=verdict,
    )
    result.attrs.update(n_prompts=int(counted.size), prompts_sha256=digest, seed=task.seed)
    return result


def _always_on(scores: Array, threshold: float) -> tuple[Array, int]:
    """Return the share of the cells with a score in which each head retrieves, and their number."""
    cells = scores.reshape(-1, *scores.shape[2:])
    measured = ~np.isnan(cells).all((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        passing = (cells > threshold)[measured].sum(0) / measured.sum()
    # A layer without attention has no score.
    return np.where(np.isnan(cells).all(0), np.nan, passing), int(measured.sum())


def _read(
    model: Model, cells: list[list[Task]], decoding: str, new_tokens: int
) -> tuple[Array, Array, Array, Array, str]:
    """Score every prompt of every cell (length, depth, prompt, ...), and digest their tokens."""
    digests, rows = [], []
    for task in (task for row in cells for task in row):
        prompts = read(model, task)
        assert prompts.encoded is not None
        digests.append(prompts.digest())
        for ids, questions in zip(prompts.ids, prompts.encoded.questions, strict=True):
            rows.append(score(model, ids, questions, decoding, new_tokens))
    shape = (len(cells), len(cells[0]), -1)
    sets, multisets, recalled, matched = (
        np.stack(part).reshape(*shape, *np.shape(part[0])) for part in zip(*rows, strict=True)
    )
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return sets, multisets, recalled, matched, digest
