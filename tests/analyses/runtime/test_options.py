"""Bounds in the signature of an analysis hold for every caller."""

from typing import Annotated

import pytest
import xarray as xr
from refusals import check_refusal, refusal

from headscope import analyses
from headscope.analyses._runtime.options import AtLeast, Between, OneOf, Option, checked, parse
from headscope.analyses._runtime.progress import completed, reporting
from headscope.analyses._runtime.results import Results
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.kernels.errors import InvalidInput
from headscope.probes.attention import work


def run(
    capture: object,
    *,
    share: Annotated[float, Between(0, 1)] = 0.5,
    count: Annotated[int, AtLeast(1)] = 3,
    metric: Annotated[str, OneOf(("task", "accuracy"))] = "task",
    free: int = 0,
) -> tuple[float, int, str, int]:
    return share, count, metric, free


def test_values_within_bounds_pass():
    given = {"share": 1, "count": 1, "metric": "accuracy", "free": -5}
    assert checked(run)(None, **given) == (1, 1, "accuracy", -5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("share", 1.01), ("share", float("nan")), ("count", 0), ("metric", "loss")],
)
def test_values_out_of_bounds_are_refused_by_the_name_of_the_option(option, value):
    error = refusal(checked(run), None, **{option: value})
    assert (type(error), error.field) == (InvalidInput, option)


def test_text_of_a_job_file_meets_the_same_bounds():
    known = {"count": Option(3, "", (AtLeast(1),))}
    assert parse("toy", known, {"count": "2"}) == {"count": 2}
    check_refusal("count", parse, "toy", known, {"count": "0"})


def outside(bound: object) -> object:
    if isinstance(bound, Between):
        return bound.high + 1
    return bound.low - 1 if isinstance(bound, AtLeast) else "no such word"


LIMITED = [
    (name, option, bound)
    for name in analyses.names()
    for option, (_, _, bounds) in analyses.options(name).items()
    for bound in bounds
]


def test_bounds_are_read_from_the_signatures():
    assert len(LIMITED) > 100


@pytest.mark.parametrize(("name", "option", "bound"), LIMITED)
def test_every_declared_bound_is_met_before_anything_runs(name, option, bound):
    error = refusal(analyses.load(name).run, None, **{option: outside(bound)})
    assert (type(error), error.field) == (InvalidInput, option)


def test_a_bar_moves_with_the_work_and_is_full_at_its_end_alone():
    seen: list[tuple[float, float]] = []
    with reporting(lambda done, total: seen.append((done, total)), 20):
        work.add(4, backward=False)
        work.add(4, backward=True)
        assert seen == [(0, 20), (4, 20), (16, 20)]
        work.add(40, backward=False)  # more than was expected
        assert seen[-1][0] == 56
        assert seen[-1][0] / seen[-1][1] == pytest.approx(0.95)
    assert seen[-1][0] == seen[-1][1]


def test_work_of_unknown_size_is_reported_without_a_total():
    seen: list[tuple[float, float]] = []
    with reporting(lambda done, total: seen.append((done, total))):
        work.add(4, backward=False)
    assert seen == [(0, 0), (4, 0), (4, 4)]


def test_a_bar_follows_the_share_of_parts_that_are_done():
    seen: list[tuple[float, float]] = []
    with reporting(lambda done, total: seen.append((done, total)), 20):
        work.add(30, backward=False)
        assert seen[-1][0] / seen[-1][1] == pytest.approx(0.95)
        completed(0.25)
        assert seen[-1] == (30, 120)
        work.add(30, backward=False)
        assert seen[-1] == (60, 120)
    assert seen[-1] == (120, 120)
    completed(0.5)
    assert len(seen) == 5


def test_joined_verdicts_keep_the_more_severe_state():
    joined = Verdict("supported", "One.") & Verdict("too_few", "Two.")
    assert joined == Verdict("too_few", "One. Two.")
    with pytest.raises(ValueError, match="state"):
        Verdict("perhaps", "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("above", "state"),
    [([1.0] * 16, "supported"), ([-1.0] * 16, "disagreement"), ([1.0], "too_few")],
)
def test_a_verdict_ends_the_note_of_the_result(above, state):
    verdict = causal_verdict(above, "1 and 2 nats")
    result = Results(xr.Dataset(coords={"layer": [0]})).dataset(verdict=verdict, note="Two heads.")
    assert result.attrs["verdict"] == verdict.state == state
    assert result.attrs["note"].startswith("Two heads. ")
    assert result.attrs["note"].endswith(": 1 and 2 nats.")
