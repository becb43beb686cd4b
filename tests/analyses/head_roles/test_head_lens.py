"""Lenses on heads: words that a head writes in plain sight, and words that a later head turns."""

import numpy as np
import pytest
import torch
from constructed_writers import TURNER, WRITER, rings, turning
from refusals import check_refusal

from headscope.analyses import head_lens
from headscope.analyses._interventions.ablation import mean_z
from headscope.analyses._interventions.next_token_loss import mean_loss, tokens
from headscope.analyses.head_roles import _linear_lens, _prompt_folds
from headscope.probes import capture, load_model, tasks
from headscope.probes.interventions import Replace


@pytest.fixture(scope="module")
def model():
    return turning()


@pytest.fixture(scope="module")
def held(model):
    return capture(model, rings(), stats=(), keep=("z", "resid"))


@pytest.fixture(scope="module")
def result(model, held):
    return head_lens.run(held, model)


@pytest.mark.requirement("C7")
def test_the_untrained_lens_names_what_stands_in_plain_sight_and_the_trained_one_what_is_turned(
    result,
):
    untrained, trained, shuffled = (
        result[f"{name}_top1"].values for name in ("untrained", "trained", "shuffled")
    )
    assert untrained[TURNER] == 1.0
    assert untrained[WRITER] == 0.0  # it names the word that was read, not the one that follows
    assert trained[WRITER] > 0.9
    assert trained[TURNER] > 0.9
    assert shuffled[WRITER] < 0.3
    distances = {name: result[f"{name}_kl"].values for name in ("untrained", "trained", "shuffled")}
    mean = float(result["mean_prediction_kl"])
    assert distances["untrained"][TURNER] < 0.01
    assert distances["untrained"][WRITER] > mean
    assert distances["trained"][WRITER] < 0.3 * mean
    # With other targets nothing is learned, and silent heads never say anything.
    assert distances["shuffled"][WRITER] > 0.9 * mean
    np.testing.assert_allclose(distances["trained"][0, 1:], mean, atol=1e-5)
    np.testing.assert_allclose(result["lens_gain"].values[0, 1:], 0, atol=1e-5)
    assert result.attrs["verdict"] == "supported"
    assert "From 2 of 8 heads" in result.attrs["verdict_text"]
    assert {tuple(head) for head in np.argwhere(result["trained_words"].values != "")} == {
        WRITER, TURNER,
    }  # fmt: skip


def test_lift_is_the_log_probability_over_the_mean_prediction_of_plausible_words():
    mean = torch.tensor([0.6, 0.3, 0.06, 0.0399, 0.0001]).log()
    raised = torch.tensor([
        [0.0, 0.5, 0.0, 0.0, 0.0],  # the first word stays the first, the second is raised
        [0.0, 0.0, 2.0, 0.0, 2.4],  # the last is raised more, yet not plausible
        [0.0, 0.0, 0.0, 0.0, 0.0],  # the mean prediction itself
        [3.0, 3.0, 3.0, 3.0, 3.0],  # and so is one with a constant added
    ])  # fmt: skip
    logits = raised + mean
    assert logits.argmax(-1).tolist() == [0, 0, 0, 0]
    lift = _linear_lens.lift(logits, mean.expand(4, -1)).numpy()
    assert (lift[:2] > 0).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    lens = np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum()
    assert lift[0, 1] == pytest.approx(np.log(lens[1] / 0.3), abs=1e-5)
    np.testing.assert_allclose(lift[2:], 0, atol=1e-6)


def test_distances_are_the_divergences_of_whole_distributions(model, held):
    judge = _linear_lens.Judge(model, held, _prompt_folds.cut(held, 4, 0), 3, 0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(judge.judged), judge.final.shape[1], generator=generator)
    judged = judge.trained(rows)
    own = judge.logits(judge.final[judge.judged]).double().log_softmax(-1)
    mean = judge.average[judge.fold]
    lens = (judge.logits(rows) + mean).double().log_softmax(-1)
    distance = (own.exp() * (own - lens)).sum(-1)
    agrees = (own.argmax(-1) == lens.argmax(-1)).double()
    for prompt in range(held.sizes["prompt"]):
        here = judge.folds.prompt[judge.judged] == prompt
        assert float(judged.distance[prompt]) == pytest.approx(float(distance[here].mean()), 1e-4)
        assert float(judged.agrees[prompt]) == pytest.approx(float(agrees[here].mean()))
    whole = _linear_lens.lift(lens.float(), mean).mean(0)
    np.testing.assert_allclose(judged.lift, whole, atol=1e-5)


def test_tuned_lens_reads_the_stream_before_it_is_turned(result):
    untrained, trained = (result[f"stream_{name}_kl"].values for name in ("untrained", "trained"))
    assert untrained[0] > float(result["mean_prediction_kl"])
    assert trained[0] < 0.3 * float(result["mean_prediction_kl"])
    assert untrained[1] == pytest.approx(0, abs=1e-5)  # the end of the stream is the prediction


def test_the_loss_beside_it_is_the_mean_ablation(result, model, held):
    for head in (WRITER, (0, 1)):
        edit = Replace(heads=(head,), values=mean_z(held))
        lost = [mean_loss(model, ids, (edit,)) - mean_loss(model, ids) for ids in tokens(held)[:16]]
        assert float(result["loss_ablation"][head]) == pytest.approx(np.mean(lost), abs=1e-4)
    assert float(result["loss_ablation"][WRITER]) > 0.5
    assert result["loss_ablation"].attrs["evidence"] == "causal"
    assert float(result["gain_vs_ablation"]) > 0.9


def test_ridge_is_that_of_scikit_learn_on_each_fold(held):
    from sklearn.linear_model import Ridge

    folds = _prompt_folds.cut(held, 4, 0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(folds.prompt), 2, 5, generator=generator)
    targets = torch.randn(len(folds.prompt), 3, generator=generator)
    judged = folds.draw(3, 0)
    result = _linear_lens.predicted(features, targets, folds, judged, 0.3)
    for fold in range(4):
        train, here = folds.fold != fold, folds.fold[judged] == fold
        assert not set(folds.prompt[train].tolist()) & set(folds.prompt[judged[here]].tolist())
        for head in range(2):
            x = features[train, head].double().numpy()
            penalty = 0.3 * x.var(0).sum() * len(x) / 5
            fit = Ridge(alpha=penalty).fit(x, targets[train].double().numpy())
            expected = fit.predict(features[judged[here], head].double().numpy())
            expected -= targets[train].double().mean(0).numpy()
            np.testing.assert_allclose(result[here, head], expected, atol=1e-5)


def test_prompts_of_one_text_share_a_fold(model):
    texts = [*rings(6), *rings(6)]
    folds = _prompt_folds.cut(capture(model, texts, stats=("lse",)), 3, 1)
    first = [int(folds.fold[folds.prompt == prompt][0]) for prompt in range(12)]
    assert first[:6] == first[6:]
    assert folds.count == 3
    drawn = folds.draw(2, 0)
    assert torch.bincount(folds.prompt[drawn]).tolist() == [2] * 12
    assert (drawn.diff() > 0).all()
    values = torch.arange(len(folds.prompt)).float()
    means = folds.by_prompt(values[drawn], drawn)
    assert float(means[3]) == float(values[drawn[6:8]].mean())


def test_heads_of_the_bundled_model_predict_on_texts_that_no_lens_has_seen(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=32)
    result = head_lens.run(capture(bundled, task, stats=(), keep=("z", "resid")), bundled)
    assert result.attrs["verdict"] != "too_few"
    gain, mean = result["lens_gain"].values, float(result["mean_prediction_kl"])
    assert (result["lens_gain_lower"].values > 0).sum() > 8
    assert float(result["trained_kl"].min()) < 0.8 * mean
    # Targets of other positions teach nothing.
    assert float(np.abs(result["shuffled_kl"] - mean).max()) < 0.3 * mean
    assert np.isfinite(gain).all()
    words = result["trained_words"]
    assert "raises most over the mean prediction" in words.attrs["long_name"]
    # Heads differ in their words, other than in the words that they put first.
    firsts = [text.split(", ")[0] for text in words.values.ravel()]
    assert max(map(firsts.count, firsts)) < len(firsts) / 2
    assert len({word for text in words.values.ravel() for word in text.split(", ")}) > 20
    streams = result["stream_trained_kl"].values
    assert streams[-1] < streams[0]
    assert (result["stream_trained_kl"].values[:-1] < result["trained_kl"].values[:-1].min(1)).all()


def test_what_has_no_held_out_prompt_is_refused(model):
    twice = capture(model, [rings()[0]] * 3, stats=(), keep=("z", "resid"))
    check_refusal("prompts", head_lens.run, twice, model)


def test_a_model_whose_logits_are_scaled_is_refused(model, held):
    import copy

    module = copy.deepcopy(model.module)
    scaled = load_model(module, tokenizer=model.tokenizer)
    module.register_forward_hook(lambda part, args, out: setattr(out, "logits", out.logits / 2))
    check_refusal("model", head_lens.run, held, scaled)
