"""The order of emergence: found where checkpoints or runs determine it, and refused where not."""

import numpy as np
import xarray as xr
from refusals import check_message, check_refusal

from headscope.analyses.series import order

STEPS = np.arange(0, 1001, 100)


def curve(middle: float, width: float = 40.0, final: float = 0.9) -> np.ndarray:
    return final / (1 + np.exp(-(STEPS - middle) / width))


def made(half: float = 0.01, **curves: np.ndarray) -> xr.Dataset:
    """A timeline of scores of one head each, with intervals."""
    ends = {"": 0.0, "_lower": -half, "_upper": half}
    values = {
        f"{name}{end}": ("checkpoint", values + shift)
        for name, values in curves.items()
        for end, shift in ends.items()
    }
    return xr.Dataset(values, {"step": ("checkpoint", STEPS)})


def test_scores_of_one_run_are_ordered_by_its_checkpoints():
    result = order(
        made(late=curve(650), early=curve(350), last=curve(850)), ["late", "early", "last"]
    )
    assert result["score"].values.tolist() == ["early", "late", "last"]
    np.testing.assert_allclose(result["emergence_step"], [350, 650, 850], atol=12)
    assert result["emergence_step_lower"].values.tolist() == [300, 600, 800]
    assert result["emergence_step_upper"].values.tolist() == [400, 700, 900]
    np.testing.assert_allclose(result["lag"][1:], [300, 200], atol=15)
    # What is not seen between checkpoints may shorten or lengthen the lag by their distances.
    assert result["lag_lower"].values[1:].tolist() == [200, 100]
    assert result["lag_upper"].values[1:].tolist() == [400, 300]
    assert result.attrs["pairs"] == ["supported", "supported"]
    assert result.attrs["verdict"] == "supported"
    assert result["in_order"].values[1:].tolist() == [1, 1]
    # Progress is the share of the change: a logistic curve, whatever its height.
    expected = curve(350, final=1.0)
    expected = (expected - expected[0]) / (expected[-1] - expected[0])
    np.testing.assert_allclose(result["progress"].sel(score="early"), expected, atol=1e-6)


def test_a_falling_loss_and_heads_are_ordered_together():
    heads = np.stack([curve(700), curve(400), 0 * STEPS], axis=-1)[:, None]
    timeline = made(loss=6 - curve(600, final=5.0))
    timeline["role"] = (("checkpoint", "layer", "head"), heads)
    result = order(timeline, ["loss", "role"])
    assert [(row["score"], row["entries"]) for row in result.attrs["order"]] == [
        ("role", ["L0H1"]), ("loss", [""]),
    ]  # fmt: skip
    assert result.attrs["verdict"] == "supported"


def test_what_rises_between_the_same_checkpoints_cannot_be_ordered():
    result = order(made(one=curve(440, 5.0), other=curve(460, 5.0)), ["one", "other"])
    assert result.attrs["verdict"] == "too_few"
    assert result["lag_lower"][1] < 0 < result["lag_upper"][1]
    # Nor can what lies apart by less than its intervals.
    close = {"one": curve(430, 90.0), "other": curve(440, 90.0)}
    assert order(made(half=0.1, **close), ["one", "other"]).attrs["verdict"] == "too_few"
    # Curves that cross have no order.
    crossing = {"one": curve(500, 40.0), "other": curve(500, 160.0)}
    assert order(made(half=0.001, **crossing), ["one", "other"]).attrs["verdict"] == "disagreement"


def test_scores_of_several_runs_are_ordered_by_the_interval_over_runs():
    rng = np.random.default_rng(0)
    begins = rng.normal(350, 80, 8)
    lags = rng.normal(120, 40, 8)
    runs = [
        made(first=curve(begin), then=curve(begin + lag), same=curve(begin + rng.normal(0, 40)))
        for begin, lag in zip(begins, lags, strict=True)
    ]
    result = order(runs, ["then", "first"])
    assert result["score"].values.tolist() == ["first", "then"]
    assert float(result["lag_lower"][1]) < lags.mean() < float(result["lag_upper"][1])
    assert result.attrs["verdict"] == "supported"
    assert "in 8 of 8 runs" in result.attrs["note"]
    assert "progress" not in result
    assert order(runs, ["first", "same"]).attrs["verdict"] == "not_supported"
    assert order(runs[:2], ["first", "then"]).attrs["verdict"] == "too_few"


def test_the_order_is_lost_when_runs_are_paired_with_those_of_other_scores():
    """The control: exchange the two scores in half of the runs."""
    rng = np.random.default_rng(1)
    runs = []
    for number, begin in enumerate(rng.normal(400, 60, 10)):
        first, second = curve(begin), curve(begin + 150)
        runs.append(made(a=first, b=second) if number % 2 else made(a=second, b=first))
    result = order(runs, ["a", "b"])
    assert result.attrs["verdict"] == "not_supported"
    assert float(result["in_order"][1]) == 0.5


def test_it_refuses_what_has_no_order():
    flat = made(one=curve(400), flat=0 * STEPS)
    check_message("1 emerges in every run", order, flat, ["one", "flat"])
    check_refusal("timelines", order, [])
    check_refusal("least", order, flat, ["one"], least=-1)
    check_refusal("score", order, flat, ["one", "other"])
