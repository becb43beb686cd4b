import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from refusals import check_message, check_refusal

from headscope.analyses import qk_attribution
from headscope.analyses._interventions import ablation, read_removal
from headscope.analyses._interventions.read_removal import Removal
from headscope.analyses._measurements.score_sources import Source
from headscope.analyses._measurements.score_terms import Scores
from headscope.analyses._runtime import runner
from headscope.analyses._runtime.results import label
from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.analyses.circuits import _feature_sources
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
def split_scores(circuit, task):
    return qk_attribution.run(seen(circuit, task), circuit, task, edges=3, draws=3)


@pytest.mark.requirement("E2")
def test_the_induction_head_attends_by_what_the_head_before_wrote_at_the_key(split_scores):
    assert split_scores.attrs["chosen_head"] == "L1H0"
    for kind, whole in (("term", "score"), ("margin", "margin")):
        total, shown = float(split_scores[whole]), split_scores[f"pair_{kind}"]
        assert float(shown.sum()) == pytest.approx(total, rel=1e-5)
        assert float(shown.sel(one="embedding", other="L0H0")) > 0.9 * total > 5
        keys = split_scores[f"key_{kind}"].values
        assert keys[PREVIOUS] > 0.9 * total
        assert np.abs(np.delete(keys[0], PREVIOUS[1])).max() < 0.01 * total
        assert np.isnan(keys[1]).all()
        assert np.abs(split_scores[f"query_{kind}"].values[0]).max() < 0.01 * total
    assert "embedding at the query against L0H0 at the key" in split_scores.attrs["note"]


@pytest.mark.requirement("E2")
def test_without_this_write_the_head_attends_elsewhere_and_the_answer_goes(split_scores):
    assert split_scores.attrs["verdict"] == "supported"
    selected = split_scores.sel(condition="L0H0 at the key")
    drawn = split_scores.sel(condition=qk_attribution.DRAWN)
    assert float(selected["margin_lost"]) == pytest.approx(float(selected["predicted"]), rel=0.15)
    assert float(selected["attention_lost_lower"]) > 0.9
    assert float(selected["metric_lost_lower"]) > 1
    assert float(drawn["margin_lost"]) < 0.7 * float(selected["margin_lost"])
    assert np.isnan(float(drawn["predicted"]))


def test_a_read_without_nothing_is_the_models_own(random_llama):
    ids = [0, 5, 9, 7, 5, 12, 3]
    cap = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
    for head, query, key in (((1, 0), 6, 2), ((1, 3), 4, 4)):
        scores, weights = read_removal.rows_without(random_llama, ids, head, query, [Removal()] * 2)
        own = float(logit_terms(cap, *head, query, key)["score"])
        np.testing.assert_allclose(scores[:, key], own, atol=1e-5)
        row = pattern(cap, *head).values[query]
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
    taken = [scores.vector(cap, 0, at, Source("rest", 0)) for at in (6, slice(None))]
    got, weights = read_removal.rows_without(random_llama, ids, (1, 1), 6, [Removal(*taken)])
    own = float(logit_terms(gone, 1, 1, 6, 2)["score"])
    assert got[0, 2] == pytest.approx(own, abs=1e-5)
    np.testing.assert_allclose(weights[0], pattern(gone, 1, 1).values[6], atol=1e-5)
    assert abs(own - float(logit_terms(cap, 1, 1, 6, 2)["score"])) > 1e-4


def random_sae(model, site, k=6, features=40):
    """An autoencoder that reconstructs little, so that error and bias count."""
    sae = SparseAutoencoder(
        "topk", site.width(model.heads, model.geometry.value_size), features, site, k=k
    )
    generator = torch.Generator().manual_seed(2)
    for weights in (sae.encoder, sae.decoder, sae.decoder_bias, sae.encoder_bias):
        weights.data = 0.3 * torch.randn(weights.shape, generator=generator)
    return sae


@pytest.mark.requirement("E2")
@pytest.mark.parametrize("site", [Site(0), Site(0, head=2)], ids=str)
def test_features_stand_in_for_their_heads_and_terms_still_sum_to_the_score(random_llama, site):
    ids = [0, 5, 9, 7, 5, 12, 3]
    cap = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
    sae = random_sae(random_llama, site)
    places = torch.tensor([[6, 2]])
    named = _feature_sources.strongest(sae, cap, places, 4)
    parts = _feature_sources.FeatureParts(sae, random_llama, named)
    split = Scores(random_llama, len(ids), parts).split(cap, (1, 3), 0, 6, 2)
    whole = Scores(random_llama, len(ids)).split(cap, (1, 3), 0, 6, 2)
    assert split.terms.sum() == pytest.approx(whole.score, abs=1e-5 * whole.size)
    heads = [source for source in whole.sources if source.head in site.heads(4)]
    assert set(whole.sources) - set(split.sources) == set(heads)
    assert [source.feature for source in split.sources if source.kind == "feature"] == named
    for axis in (0, 1):
        by_parts, by_heads = (
            each.terms.sum(axis)[[each.sources.index(source) for source in sources]]
            for each, sources in ((split, parts.sources), (whole, heads))
        )
        assert by_parts.sum() == pytest.approx(by_heads.sum(), abs=1e-5 * whole.size)
        # None of them is nothing.
        assert (np.abs(by_parts) > 1e-7 * whole.size).all()


@pytest.mark.requirement("E2")
def test_a_feature_writes_what_a_model_without_it_lacks(random_llama):
    """Against a copy of the model in which the feature is gone from z, at every position."""
    ids = [0, 5, 9, 7, 5, 12, 3]
    sae = random_sae(random_llama, Site(0))
    block = random_llama.module.model.layers[0]
    handles = [block.mlp.register_forward_hook(lambda part, args, result: 0 * result)]
    try:
        cap = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
        [feature] = _feature_sources.strongest(sae, cap, torch.tensor([[6, 2]]), 1)
        parts = _feature_sources.FeatureParts(sae, random_llama, [feature])
        scores = Scores(random_llama, len(ids), parts)
        taken = [scores.vector(cap, 0, at, parts.sources[0]) for at in (6, slice(None))]
        got, _ = read_removal.rows_without(random_llama, ids, (1, 1), 6, [Removal(*taken)])

        @torch.no_grad()
        def without(part, args):
            return args[0] - sae.encode(args[0])[..., feature, None] * sae.decoder[feature]

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(without))
        gone = capture(random_llama, [ids], stats=("lse",), keep=KEEP)
    finally:
        for handle in handles:
            handle.remove()
    own = float(logit_terms(gone, 1, 1, 6, 2)["score"])
    assert got[0, 2] == pytest.approx(own, abs=1e-5)
    assert abs(own - float(logit_terms(cap, 1, 1, 6, 2)["score"])) > 1e-4


@pytest.mark.requirement("E2")
def test_the_features_of_the_head_before_are_why_the_induction_head_attends(circuit, task):
    cap = seen(circuit, task)
    # Both signs of every coordinate: an exact dictionary.
    size = circuit.geometry.value_size
    sae = SparseAutoencoder("relu", size, 2 * size, Site(0, head=PREVIOUS[1]))
    both = torch.cat([torch.eye(size), -torch.eye(size)])
    sae.encoder.data, sae.decoder.data = both.T.clone(), both
    result = qk_attribution.run(
        cap, circuit, task, sae, features=2 * size, sources=2 * size, edges=6, draws=2
    )
    whole = qk_attribution.run(cap, circuit, task, edges=2, draws=2)
    total = float(result["score"])
    assert float(result["pair_term"].sum()) == pytest.approx(total, rel=1e-5)
    assert np.isnan(result["key_term"].values[PREVIOUS])
    by_feature = result["pair_term"].sum("one")
    of_features = [name for name in by_feature["other"].values if "feature" in name]
    assert len(of_features) > 4
    assert float(by_feature.sel(other=of_features).sum()) == pytest.approx(
        float(whole["key_term"].values[PREVIOUS]), rel=1e-3
    )
    assert any("feature" in name for name in result["condition"].values)


def test_an_autoencoder_of_a_layer_that_the_head_does_not_read_is_refused(circuit, task):
    cap = seen(circuit, task)
    sae = random_sae(circuit, Site(1), features=10)
    check_refusal("sae", qk_attribution.run, cap, circuit, task, sae, head="L1H0")


def test_weights_in_place_of_a_heads_own_change_nothing_where_they_are_the_same(circuit, task):
    cap = seen(circuit, task)
    encoded = ablation.encode_task(circuit, task)
    queries = np.array([questions[-1].at for questions in encoded.questions])
    own = [pattern(cap, *INDUCTION, prompt=row).values[at][None] for row, at in enumerate(queries)]
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


def test_a_head_that_reads_the_embedding_alone_is_refused(random_llama):
    task = repeated(n=2, length=5)
    check_message("embedding alone", qk_attribution.run, seen(random_llama, task), random_llama,
                  task, head="L0H1")  # fmt: skip


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
    task = tasks.make("induction", tokenizer=bundled.tokenizer, n=16, seed=0, length=25)
    types = runner.execute("head_types", bundled, task=task, options={"draws": 2})
    by_type = types.attrs["heads_by_type"]
    head = by_type["induction"][0]
    result = runner.execute("qk_attribution", bundled, task=task, options={"head": head})
    keys = result["key_term"]
    best = label(divmod(int(np.nanargmax(keys.values)), keys.sizes["head"]))
    assert best in by_type["previous_token"]
    assert float(result["pair_term"].sum()) == pytest.approx(float(result["score"]), rel=1e-5)
    assert result.attrs["verdict"] == "supported"
    predicted, lost, drawn = (
        result[name].sel(condition=condition)
        for name, condition in (
            ("predicted", f"{best} at the key"),
            ("margin_lost", f"{best} at the key"),
            ("margin_lost", qk_attribution.DRAWN),
        )
    )
    assert float(lost) == pytest.approx(float(predicted), rel=0.4)
    assert float(lost) > 3 * abs(float(drawn))
