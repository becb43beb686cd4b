import numpy as np
import pytest
import xarray as xr
from architectures import eager_maps
from refusals import check_refusal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headscope.analyses._runtime.runner import execute
from headscope.analyses._stats.classification import auroc
from headscope.analyses.retrieval_heads._detector import Detector, ratios, windowed
from headscope.kernels.errors import HeadscopeError
from headscope.probes.capturing.generation import generate
from headscope.probes.prompts import tasks
from headscope.probes.prompts.tasks._absent_facts import with_absent_fact, with_stated_fact
from headscope.probes.prompts.tokens import encode
from headscope.probes.prompts.writing import split


@pytest.mark.requirement("B4")
def test_the_ratio_of_sums_is_the_ratio_of_the_models_own_maps(bundled):
    prompts = [[0, 30, 31, 32, 33, 34, 35], [0, 40, 41, 42]]
    result = generate(bundled, prompts, ("span_mass",), new_tokens=3, prefix=2)
    measured = ratios(result, 2)
    assert measured.shape == (2, 3, 4, 8)
    for row, prompt in enumerate(prompts):
        ids = result["token_id"].values[row, : len(prompt) + 3].astype(int)
        maps = eager_maps(bundled.module, ids.tolist())
        context = len(prompt) - 2
        for step in range(3):
            weights = maps[:, :, len(prompt) - 1 + step, : len(prompt) + step]
            back, own = weights[..., :context].mean(-1), weights[..., context:].mean(-1)
            expected = (back / (back + own)).numpy()
            np.testing.assert_allclose(measured[row, step], expected, atol=1e-4)


def test_a_uniform_head_has_ratio_one_half():
    sums = np.zeros((2, 1, 8, 1, 1))
    for query in range(8):
        seen = query + 1
        sums[0, 0, query], sums[1, 0, query] = min(seen, 4) / seen, max(seen - 4, 0) / seen
    generated = np.arange(8)[None] >= 5
    data = {"span_mass": (("span", "prompt", "query", "layer", "head"), sums)}
    written = {"generated": (("prompt", "query"), generated)}
    recording = xr.Dataset(data, {"span": ["prompt", "generated"], **written})
    np.testing.assert_allclose(ratios(recording, 1), 0.5)


def test_the_window_averages_what_is_there():
    assert windowed(np.array([[2.0, 4.0, 9.0, 1.0]]), 3).tolist() == [[2.0, 3.0, 5.0, 14 / 3]]


def test_the_area_is_the_one_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.random(60) < 0.4
    scores = (truth + generator.normal(size=60)).round(1)
    area, lower, upper = auroc(truth, scores, np.arange(60))
    assert area == pytest.approx(roc_auc_score(truth, scores))
    # Hanley and McNeil's standard error, from the area and the counts alone.
    yes, no = int(truth.sum()), int((~truth).sum())
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (yes - 1) * (first - area**2) + (no - 1) * (second - area**2)
    half = 1.96 * np.sqrt(variance / (yes * no))
    assert (upper - lower) / 2 == pytest.approx(half, rel=0.25)


def test_the_interval_of_an_area_lies_around_it():
    """In every pair the true sample wins, between pairs the larger pair does: 21 wins of 36."""
    base = np.repeat(np.arange(6.0), 2)
    truth = np.tile([True, False], 6)
    area, lower, upper = auroc(truth, base + 0.1 * truth, np.repeat(np.arange(6), 2))
    assert area == pytest.approx(21 / 36)
    assert lower < area < upper


def judged(features: np.ndarray, truth: np.ndarray) -> tuple[float, Detector]:
    detector = Detector(features[:60], truth[:60], standardized=True)
    return auroc(truth[60:], detector.probability(features[60:]), np.arange(60))[0], detector


@pytest.mark.requirement("B4")
def test_the_detector_finds_one_planted_head_and_nothing_in_noise():
    generator = np.random.default_rng(1)
    truth = np.tile([True, False], 60)
    areas = []
    for _ in range(20):
        noise = generator.random((120, 2, 3))
        areas.append(judged(noise, truth)[0])
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)
    noise[:, 1, 2] -= 0.9 * truth
    area, detector = judged(noise, truth)
    assert area > 0.95
    assert np.unravel_index(np.abs(detector.weights).argmax(), (2, 3)) == (1, 2)
    assert detector.weights[1, 2] < 0


def test_a_twin_lacks_the_asked_fact_and_nothing_else(bundled):
    present = with_stated_fact(tasks.make("recall", bundled.tokenizer, 5))
    for here, there in zip(
        present.prompts, with_absent_fact(present, bundled.tokenizer).prompts, strict=True
    ):
        ours, expected = split(here.clean), split(there.clean)
        asked = ours[-1]
        assert expected[-1] == asked
        assert ours.count(asked) == 2
        assert expected.count(asked) == 1
        (place,) = (at for at in range(len(ours)) if ours[at] != expected[at])
        assert ours[place] == asked
        assert f" {ours[place + 1]}" in here.questions[0].answers


@pytest.mark.requirement("B4")
def test_the_timeline_is_that_of_scikit_learn_on_the_models_own_maps(bundled):
    """Risk of every generated token, and the area with its interval, made again by hand."""
    task = tasks.make("recall", bundled.tokenizer, 12)
    options = {"new_tokens": 3, "window": 2, "draws": 1}
    result = execute("lookback", bundled, task=task, options=options)
    present = with_stated_fact(task)
    features = np.empty((2, 12, 3, 32))
    limit = np.log(1e7 - 1)  # as far as float32 can tell a share from 0 and 1
    for fact, prompts in enumerate((present, with_absent_fact(present, bundled.tokenizer))):
        for row, (ids, asked) in enumerate(encoded(prompts, bundled)):
            start, text = asked[0].at + 1, list(ids)
            written = generate(bundled, [text], ("lse",), new_tokens=3)["token_id"].values[0]
            maps = eager_maps(bundled.module, written.astype(int).tolist()).double().numpy()
            odds = []
            for at in range(start, start + 3):
                weights = maps[:, :, at - 1, :at]
                back, own = weights[..., : start - 2].mean(-1), weights[..., start - 2 :].mean(-1)
                odds.append(np.log(back / own).clip(-limit, limit).ravel())
            # A window of two: the token and the one before it.
            features[fact, row] = odds[0], (odds[0] + odds[1]) / 2, (odds[1] + odds[2]) / 2
    order = np.random.default_rng(0).permutation(12)
    train, test = order[:6], order[6:]
    detector = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    detector.fit(features[:, train].reshape(-1, 32), np.repeat([0, 1], 18))
    risk = detector.predict_proba(features[:, test].reshape(-1, 32))[:, 1].reshape(2, 6, 3)
    np.testing.assert_allclose(result["risk"], risk.mean(1).T, atol=2e-3)
    # Along the whole answer what no context states is riskier than what it does.
    assert (result["risk"].sel(fact="fact absent") > result["risk"].sel(fact="fact stated")).all()
    area, lower, upper = (
        float(result[f"auroc{end}"].sel(features="log odds, window", split="test"))
        for end in ("", "_lower", "_upper")
    )
    expected = roc_auc_score(np.repeat([0, 1], 18), risk.ravel())
    assert area == pytest.approx(expected, abs=0.01)
    assert 0.5 < lower < area < upper < 1


def encoded(task, model):
    """Token ids and questions of every prompt, up to the first question."""
    made = encode(task, model.tokenizer, model.bos)
    return [
        (ids[: asked[0].at + 1], asked) for ids, asked in zip(made.ids, made.questions, strict=True)
    ]


@pytest.mark.requirement("B4")
def test_absent_facts_show_in_the_copying_heads_of_the_bundled_model(bundled):
    result = execute("lookback", bundled, n=12, options={"new_tokens": 1, "draws": 2})
    assert result["supported"].values.tolist() == [1.0, 0.0]
    alone = result["head_auroc_lower"].values
    assert min(alone[3, head] for head in (0, 1, 4, 5, 7)) > 0.5
    train, test = result["auroc"].sel(features="log odds, answer").values
    assert train > 0.9
    assert test > 0.6
    intact, without, others = result["accuracy"].values
    assert intact == 1.0
    assert without < 0.1
    assert others > 0.8


def test_bad_input_is_refused(bundled):
    check_refusal("n", execute, "lookback", bundled, n=3)
    with pytest.raises(HeadscopeError, match="does not say where"):
        execute("lookback", bundled, task=tasks.make("induction", bundled.tokenizer, 4))
    check_refusal("answer", execute, "lookback", bundled, n=4, options={"answer": 3})
    check_refusal("prefix", generate, bundled, [[0, 30, 31, 32]], ("span_mass",), prefix=4)
