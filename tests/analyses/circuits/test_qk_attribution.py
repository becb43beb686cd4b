import numpy as np
import pytest
from constructed import INDUCTION, PREVIOUS, repeated
from refusals import check_message, check_refusal

from headscope.analyses import qk_attribution
from headscope.analyses._interventions import ablation, read_removal
from headscope.analyses._interventions.read_removal import Removal
from headscope.analyses._measurements.score_terms import Scores, Source
from headscope.analyses._runtime import runner
from headscope.probes import capture, tasks
from headscope.probes.capturing.attention_pattern import pattern
from headscope.probes.capturing.logit_terms import logit_terms

KEEP = qk_attribution.KEEP


def seen(model, task):
    return capture(model, task, stats=("lse",), keep=KEEP)


@pytest.fixture(scope="module")
def task():
    return repeated(n=16, length=6)


@pytest.fixture(scope="module")
def found(circuit, task):
    return qk_attribution.run(seen(circuit, task), circuit, task, edges=3, draws=3)


@pytest.mark.requirement("E2")
def test_the_induction_head_attends_by_what_the_head_before_wrote_at_the_key(found):
    assert found.attrs["chosen_head"] == "L1H0"
    score = float(found["score"])
    shown = found["pair_term"]
    assert float(shown.sum()) == pytest.approx(score, rel=1e-5)
    assert float(shown.sel(one="embedding", other="L0H0")) > 0.9 * score
    keys = found["key_term"].values
    assert keys[PREVIOUS] > 0.9 * score
    others = np.delete(keys[0], PREVIOUS[1])
    assert np.abs(others).max() < 0.01 * score
    assert np.isnan(keys[1]).all()
    assert np.abs(found["query_term"].values[0]).max() < 0.01 * score
    assert "embedding at the query against L0H0 at the key" in found.attrs["note"]


@pytest.mark.requirement("E2")
def test_without_this_write_the_head_looks_away_and_the_answer_goes(found):
    assert found.attrs["verdict"] == "supported"
    conditions = found["condition"].values.tolist()
    assert "L0H0 at the key" in conditions
    one = found.sel(condition="L0H0 at the key")
    drawn = found.sel(condition=qk_attribution.DRAWN)
    assert float(one["score_lost"]) == pytest.approx(float(one["predicted"]), rel=0.15)
    assert float(one["attention_lost_lower"]) > 0.9
    assert float(one["metric_lost_lower"]) > 0.5
    assert float(drawn["attention_lost"]) < 0.8
    assert np.isnan(float(drawn["predicted"]))


def test_a_read_without_nothing_is_the_models_own(random_llama):
    ids = [0, 5, 9, 7, 5, 12, 3]
    cap = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
    for head, query, key in (((1, 0), 6, 2), ((1, 3), 4, 4)):
        scores, weights = read_removal.rows_without(
            random_llama, ids, head, (query, key), [Removal()] * 2
        )
        own = float(logit_terms(cap, *head, query, key)["score"])
        np.testing.assert_allclose(scores, own, atol=1e-5)
        row = pattern(cap, *head)[query]
        np.testing.assert_allclose(weights, np.stack([row, row]), atol=1e-5)


def test_a_removal_is_what_a_model_without_this_write_has(random_llama):
    """Against a copy of the model in which the write itself is gone, at every position."""
    ids = [0, 5, 9, 7, 5, 12, 3]
    cap = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
    scores = Scores(random_llama, len(ids))
    # The MLP of the layer before is the last that writes, so nothing else answers to it.
    block = random_llama.module.model.layers[0].mlp
    handle = block.register_forward_hook(lambda part, args, result: 0 * result)
    try:
        gone = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
    finally:
        handle.remove()
    taken = [scores.vector(cap, 0, at, Source("rest", 0)) for at in (6, 2)]
    got, _ = read_removal.rows_without(random_llama, ids, (1, 1), (6, 2), [Removal(*taken)])
    own = float(logit_terms(gone, 1, 1, 6, 2)["score"])
    assert got[0] == pytest.approx(own, abs=1e-5)
    assert abs(own - float(logit_terms(cap, 1, 1, 6, 2)["score"])) > 1e-4


def test_weights_in_place_of_a_heads_own_change_nothing_where_they_are_the_same(circuit, task):
    cap = seen(circuit, task)
    encoded = ablation.encode_task(circuit, task)
    queries = np.array([questions[-1].at for questions in encoded.questions])
    own = [pattern(cap, *INDUCTION, prompt=row)[at][None] for row, at in enumerate(queries)]
    away = [np.eye(each.shape[1])[:1] for each in own]
    clean = ablation.evaluate(circuit, encoded, metric="log_probability")
    same, moved = (
        read_removal.metric_with(circuit, encoded, "log_probability", INDUCTION, queries, rows)
        for rows in (own, away)
    )
    np.testing.assert_allclose(same[:, 0], clean, atol=1e-4)
    assert (moved[:, 0] < clean).all()


def test_a_head_by_name(circuit, task):
    cap = seen(circuit, task)
    named = qk_attribution.run(cap, circuit, task, head="L0H0", edges=1, draws=1)
    assert named.attrs["chosen_head"] == "L0H0"
    assert named["key_term"].isnull().all()
    assert float(named["pair_term"].sum()) == pytest.approx(float(named["score"]), rel=1e-5)
    for name in ("L0", "L2H0", "L0H9"):
        check_refusal("head", qk_attribution.run, cap, circuit, task, head=name)
    check_message("capture this task", qk_attribution.run, cap, circuit, repeated(n=3, length=6))


def test_learned_sinks_leave_no_metric(circuit):
    pytest.importorskip("transformers.models.gpt_oss")
    import architectures

    from headscope.probes import load_model

    model = load_model(architectures.build("gpt_oss", vocab_size=64), tokenizer=circuit.tokenizer)
    task = repeated(n=3, length=5)
    result = qk_attribution.run(seen(model, task), model, task, edges=2, draws=1)
    assert "metric_lost" not in result
    assert "No metric without the writes" in result.attrs["note"]


@pytest.mark.requirement("E2")
def test_the_head_before_the_induction_head_of_the_bundled_model_is_found(bundled):
    task = tasks.make("induction", tokenizer=bundled.tokenizer, n=16, seed=0)
    types = runner.execute("head_types", bundled, task=task, options={"draws": 2})
    result = runner.execute("qk_attribution", bundled, task=task)
    before = types.attrs["heads_by_type"]["previous_token"]
    keys = result["key_term"]
    best = divmod(int(np.nanargmax(keys.values)), keys.sizes["head"])
    assert "L{}H{}".format(*best) in [str(head) for head in before], (best, before)
    assert result.attrs["verdict"] == "supported"
