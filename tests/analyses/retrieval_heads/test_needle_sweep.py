import architectures
import numpy as np
import pytest
import torch
import xarray as xr
from constructed import INDUCTION, PREVIOUS, needle
from refusals import check_message, check_refusal

from headscope.analyses._runtime.results import Results
from headscope.analyses._runtime.runner import execute
from headscope.analyses._stats.bootstrap import crossed
from headscope.analyses.retrieval_heads import _head_masking, _needle_steps
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tokens import encode

# The five heads of the last layer that copy, by the model card's knock-outs.
COPYING = {"L3H0", "L3H1", "L3H4", "L3H5", "L3H7"}
FORCED = {"decoding": "teacher_forced", "new_tokens": 1}
EVERY = [(layer, head) for layer in range(2) for head in range(4)]


def test_a_step_attends_where_the_models_own_map_is_largest(bundled):
    task = tasks.make("needle", bundled.tokenizer, 2, length=40, span=2)
    encoded = encode(task, bundled.tokenizer)
    for ids, asked in zip(encoded.ids, encoded.questions, strict=True):
        looked, generated = _needle_steps.decode_steps(bundled, ids, asked)
        logits, attentions = architectures.eager(bundled.module, torch.tensor([ids]))
        at = [each.at for each in asked]
        maps = torch.stack(attentions)[:, 0, :, at]
        np.testing.assert_array_equal(looked, maps.argmax(-1).permute(2, 0, 1).numpy())
        np.testing.assert_array_equal(generated, logits[0, at].argmax(-1).numpy())


@pytest.fixture(scope="module")
def result(bundled):
    options = {"lengths": "40,80", "depths": 2, "span": 3, "counts": "1,5", "draws": 5}
    return execute("needle_sweep", bundled, n=16, options=options)


@pytest.mark.requirement("B1")
def test_the_copying_heads_are_on_in_every_cell(result):
    assert result["accuracy"].shape == (2, 2)
    assert float(result["accuracy"].min()) == 1.0
    assert set(result.attrs["heads_by_type"]["always on"]) >= COPYING
    for layer, head in ((int(name[1]), int(name[3])) for name in COPYING):
        assert float(result["always_on"][layer, head]) == 1.0
        assert float(result["retrieval_set"][:, :, layer, head].min()) > 0.6


@pytest.mark.requirement("B1")
def test_masking_the_best_heads_breaks_recall_and_random_ones_do_not(result):
    curve = result["masking"].sel(count=5)
    assert float(curve.sel(condition="top heads")) < 0.1
    assert float(curve.sel(condition="random other heads")) > 0.8
    top = float(result["masking_upper"].sel(count=5, condition="top heads"))
    assert top < float(result["masking_lower"].sel(count=5, condition="random other heads"))
    assert set(result.attrs["causal"]["masking"]["heads"]["5"]) == COPYING
    # One head of five that share the work is missed by none.
    assert float(result["masking"].sel(count=1, condition="top heads")) == 1.0
    assert result.attrs["verdict"] == "supported"


@pytest.mark.requirement("B1")
def test_greedy_answers_lose_the_needle_without_the_best_heads_alone(bundled):
    options = {
        "lengths": "40", "depths": 2, "span": 3, "counts": "5", "draws": 4, "new_tokens": 12,
        "decoding": "greedy", "form": "multiset", "masking": "uniform",
    }  # fmt: skip
    result = execute("needle_sweep", bundled, n=4, options=options)
    assert float(result["accuracy"].min()) == 1.0
    # The needle is said again and again, and each time counts.
    assert float(result["mean_multiset"].max()) > 1.5 > float(result["mean_set"].max())
    curve = result["masking"].sel(count=5)
    assert float(result["masking"].sel(count=0, condition="top heads")) == 1.0
    assert float(curve.sel(condition="top heads")) < 0.2
    assert float(curve.sel(condition="random other heads")) > 0.8
    assert set(result.attrs["causal"]["masking"]["heads"]["5"]) == COPYING


@pytest.mark.requirement("B1")
@pytest.mark.parametrize("masking", ["zero", "uniform"])
def test_the_curve_of_a_known_circuit(circuit, masking):
    task = needle(("north", "south"), n=16)
    ranked = [INDUCTION, *[head for head in EVERY if head != INDUCTION]]
    results, given = Results(xr.Dataset()), (circuit, task, ranked, (1, 4))
    coords, record, verdict = _head_masking.curve(
        results, *given, masking=masking, draws=6, **FORCED
    )
    mean = results["masking"].values
    assert verdict.state == "supported"
    assert coords["count"] == [0, 1, 4]
    assert mean[0].tolist() == [1.0, 1.0]
    assert mean[1:, 0].tolist() == [0.0, 0.0]
    # A random set does harm when it holds the other half of the circuit, and only then.
    for row, count in ((1, 1), (2, 4)):
        sets = _head_masking.random_sets(ranked[count:], count, 6, count)
        assert mean[row, 1] == pytest.approx(np.mean([PREVIOUS not in subset for subset in sets]))
    assert record["heads"]["1"] == ["L1H0"]


def test_heads_without_a_part_leave_a_disagreement(circuit):
    task = needle(("north",), n=16)
    ranked = [(0, 2), *[head for head in EVERY if head != (0, 2)]]
    results = Results(xr.Dataset(), seed=1)
    settings = {"masking": "zero", "draws": 4, **FORCED}
    _, _, verdict = _head_masking.curve(results, circuit, task, ranked, (1,), **settings)
    assert verdict.state == "disagreement"


def test_the_crossed_interval_covers_prompts_and_draws():
    by_draw = np.repeat(np.random.default_rng(0).random((30, 1)), 40, axis=1)
    mean, lower, upper = crossed(by_draw)
    # Forty prompts that agree do not narrow what thirty draws leave open.
    spread = 1.96 * by_draw[:, 0].std() / np.sqrt(30)
    assert upper - mean == pytest.approx(spread, rel=0.15)
    assert mean - lower == pytest.approx(spread, rel=0.15)
    assert np.isnan(crossed(by_draw[:1])[1])


def test_bad_options_are_refused(bundled):
    task = tasks.make("recall", bundled.tokenizer, 2)
    for given, message in (
        ({"lengths": "64,x"}, "lengths: '64,x'"),
        ({"lengths": "4000"}, "1024"),
        ({"counts": "20", "lengths": "16", "depths": 1, "cell_prompts": 1}, "counts: 20 of 32"),
    ):
        check_message(message, execute, "needle_sweep", bundled, n=2, options=given)
    check_refusal("task", execute, "needle_sweep", bundled, task=task)
