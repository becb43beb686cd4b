"""The first screen of a report: what the run found, against numbers computed another way."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from headscope.analyses._runtime.results import GRID, Results
from headscope.analyses._runtime.verdict import Verdict
from headscope.app.report import answer, build
from headscope.app.report.findings import strongest

HEADS = (6, 4)
COORDS = {"layer": range(HEADS[0]), "head": range(HEADS[1])}


def importance(prompts: int = 32, important: tuple[str, ...] = ("L2H3", "L4H1")) -> xr.Dataset:
    """A planted result: L2H3 and L4H1 cost 5 and 3 logits, the others noise."""
    generator = np.random.default_rng(0)
    capture = xr.Dataset(coords=COORDS, attrs={"n_prompts": prompts, "task": "ioi"})
    held = Results(capture, evidence="causal")
    for name in ("zero_ablation", "mean_ablation", "gate_gradient"):
        samples = generator.normal(0, 0.2, (prompts, *HEADS))
        samples[:, 2, 3] += 5
        samples[:, 4, 1] += 3
        held.add_mean(name, GRID, samples, name, "logits", "diverging")
    held.add_mean("intact", (), np.full(prompts, 8.0), "Intact logit difference", "logits")
    held.add("null_ablation", (), 1.5, "Null", "logits")
    return held.dataset(important_heads=list(important))


def test_important_heads_come_first_with_intervals_and_roles():
    kinds = xr.Dataset(attrs={"heads_by_type": {"induction": ["L4H1"], "bos": ["L2H3"] * 2}})
    result = answer.answer({"importance": importance(), "head_types": kinds}).importance
    assert result is not None
    assert (result.task, result.n) == ("ioi", 32)
    assert (result.metric, result.intact) == ("logit difference", "8.00")
    assert [(row.rank, row.name, row.roles) for row in result.rows] == [
        ("1st", "L2H3", ("bos",)), ("2nd", "L4H1", ("induction",)),
    ]  # fmt: skip
    assert result.conclusion == "2 heads are important, of 24 ablated"
    mean = importance()["mean_ablation"]
    value, interval = result.rows[0].numbers[0]
    assert float(value) == pytest.approx(float(mean[2, 3]), rel=1e-2)
    assert interval.startswith("[4.")


def test_the_agreement_of_two_methods_is_their_rank_correlation():
    result = importance()
    actual = answer.answer({"importance": result}).importance
    assert actual is not None
    assert actual.methods == ("mean ablation", "zero ablation", "gate gradient")
    assert [len(row) for row in actual.agreement] == [0, 1, 2]
    pairs = (("zero_ablation", "mean_ablation"), ("gate_gradient", "mean_ablation"))
    for row, (one, other) in enumerate(pairs, 1):
        expected = spearmanr(*(np.abs(result[name].values).ravel() for name in (one, other)))
        assert actual.agreement[row][0][0] == pytest.approx(expected.statistic)


def test_heads_that_were_not_ablated_are_left_out_and_counted():
    result = importance()
    for end in ("", "_lower", "_upper"):
        result[f"mean_ablation{end}"][0] = np.nan
    actual = answer.answer({"importance": result}).importance
    assert actual is not None
    assert actual.measured == "20 of 24 heads were ablated"
    both = np.isfinite(result["mean_ablation"].values)
    pair = (np.abs(result[name].values[both]) for name in ("zero_ablation", "mean_ablation"))
    assert actual.agreement[1][0][0] == pytest.approx(spearmanr(*pair).statistic)


def test_too_few_prompts_call_no_head_important():
    result = answer.answer({"importance": importance(4)}).importance
    assert result is not None
    assert result.conclusion.startswith("Too few prompts (4, of at least 16)")
    assert len(result.rows) == answer.FEWEST
    none = answer.answer({"importance": importance(important=())}).importance
    assert none is not None
    assert none.conclusion.startswith("None of 24 heads is important")


def test_ties_are_ties():
    result = importance(important=())
    result["mean_ablation"][...] = 0.5
    actual = answer.answer({"importance": result}).importance
    assert actual is not None
    assert {row.rank for row in actual.rows} == {"1st (24 tied)"}


def test_what_disagrees_is_reported_with_the_text_of_its_verdict():
    held = Results(xr.Dataset(coords=COORDS))
    held.add("x", (), 1.0, "X", "share")
    results = {
        state: held.dataset(verdict=Verdict(state, f"It is {state}."), note="Many heads. " * 99)
        for state in ("supported", "disagreement", "too_few")
    } | {"left": xr.Dataset(attrs={"skipped": "no tokenizer"})}
    flags = answer.answer(results).flags
    assert [(flag.analysis, flag.kind, flag.text) for flag in flags] == [
        ("disagreement", "disagreement", "It is disagreement."),
        ("left", "not run", "no tokenizer"),
        ("too_few", "too few prompts", "It is too_few."),
    ]


def test_without_importance_the_command_and_the_strongest_finding_stand_there():
    values = np.full(HEADS, 0.1)
    values[1, 2] = 0.9
    flat = xr.DataArray(np.linspace(0, 1, 24).reshape(HEADS), dims=GRID, coords=COORDS)
    peak = xr.DataArray(values, dims=GRID, coords=COORDS, attrs={"long_name": "Peak score"})
    results = {"mine": xr.Dataset({"flat": flat, "peak": peak})}
    best = strongest(results)
    assert best is not None
    assert (best.variable, best.name) == ("peak", "L1H2")
    manifest = dict.fromkeys(("model", "architecture", "revision", "n_prompts", "headscope"), "x")
    text = " ".join(build.html(manifest, results, "r", "headscope analyze r importance").split())
    assert "<code>headscope analyze r importance</code>" in text
    assert "<b>L1H2</b>, Peak score: <b>0.900 </b>" in text
