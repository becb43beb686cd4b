"""Head outputs of a model against its own modules, splices and shares against closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from constructed import random_llama
from refusals import check_message

from headscope.analyses._interventions.next_token_loss import mean_loss
from headscope.analyses._sparse_autoencoders import evaluation, splicing
from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
from headscope.analyses._sparse_autoencoders.baselines import moments, random_directions
from headscope.analyses._sparse_autoencoders.model_training import estimate, train
from headscope.analyses._sparse_autoencoders.site import Site, cut, stream, vectors
from headscope.analyses._sparse_autoencoders.training import Settings
from headscope.probes import capture
from headscope.probes.attention import work
from headscope.probes.interventions import Ablate, Replace
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read


@pytest.fixture(scope="module")
def prompts(bundled):
    return read(bundled, tasks.make("story", bundled.tokenizer, 12, 0)).ids


def whole(model, layer):
    return [(layer, head) for head in range(model.heads)]


def test_vectors_are_the_kept_z_and_no_later_layer_runs(bundled, prompts):
    given = [list(ids) for ids in prompts[:5]]
    z = capture(bundled, given, stats=(), keep=("z",))["z"]
    z = z.transpose("prompt", "layer", "query", "head", ...)
    layers = []
    with work.counting(lambda tokens, backward: layers.append(tokens)):
        for rows, result in stream(bundled, given, Site(1)):
            for row, values in zip(rows, result, strict=True):
                expected = z.values[row, 1, : len(values)].reshape(len(values), -1)
                np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    assert sum(layers) == 2 * sum(map(len, given))
    single = vectors(bundled, torch.tensor([given[0]]), Site(1, 3))[0]
    np.testing.assert_allclose(single, z.values[0, 1, : len(given[0]), 3], atol=1e-5)


@pytest.mark.parametrize("site", [Site(2), Site(2, 1)])
def test_gathered_vectors_are_scattered_back(site):
    z = torch.randn(3, 4, 7, 8)
    assert torch.equal(site.scatter(z, site.gather(z)), z)
    zeroed = site.scatter(z, torch.zeros_like(site.gather(z)))
    heads = site.heads(4)
    assert not zeroed[:, heads].any()
    others = [head for head in range(4) if head not in heads]
    assert torch.equal(zeroed[:, others], z[:, others])


def test_splices_are_the_edits_they_stand_for(bundled, prompts):
    """The identity, zero and the mean against Ablate and Replace, one prompt at a time."""
    layer, some = 1, prompts[:4]
    mean = moments(batch for _, batch in stream(bundled, some, Site(layer))).mean.float()
    rewrites = [lambda z: z, torch.zeros_like, mean.expand_as]
    [result] = splicing.losses(bundled, some, Site(layer), rewrites)
    values = torch.zeros(bundled.layers, bundled.heads, bundled.geometry.value_size)
    values[layer] = mean.view(bundled.heads, -1)
    heads = whole(bundled, layer)
    edits = [(), (Ablate(heads),), (Replace(heads, values),)]
    expected = [[mean_loss(bundled, ids, edit) for edit in edits] for ids in some]
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert result[:, 1].mean() > result[:, 0].mean() + 0.05


def identity(size, site):
    """x = relu(x) − relu(−x): every direction and its opposite."""
    sae = SparseAutoencoder("relu", size, 2 * size, site)
    both = torch.cat([torch.eye(size), -torch.eye(size)])
    sae.decoder.data, sae.encoder.data = both, both.T.clone()
    return sae.requires_grad_(False)


def test_all_is_recovered_by_the_identity_and_none_by_what_it_is_held_against(bundled, prompts):
    site = Site(1)
    sae = identity(site.width(bundled.heads, bundled.geometry.value_size), site)
    mean = moments(batch for _, batch in stream(bundled, prompts, site)).mean.float()
    rewrites = [lambda z: z, sae, torch.zeros_like, mean.expand_as]
    [losses] = splicing.losses(bundled, prompts, site, rewrites)
    over = losses - losses[:, :1]
    for against in (2, 3):
        kept, low, high = evaluation.share_kept(over[:, 1:], over[:, [against]])
        assert kept[0] == pytest.approx(1, abs=1e-3)
        assert kept[against - 1] == pytest.approx(0, abs=1e-9)
        assert (low <= kept + 1e-9).all()
        assert (kept <= high + 1e-9).all()
    squares = evaluation.squares(
        stream(bundled, prompts, site),
        mean,
        {"identity": sae, "mean": mean.expand_as},
        len(prompts),
    )
    explained, *_ = evaluation.share_kept(squares[:, :-1], squares[:, -1:])
    np.testing.assert_allclose(explained, [1, 0], atol=1e-6)


def test_a_feature_is_taken_out_and_the_error_stays(bundled, prompts):
    sae = SparseAutoencoder("relu", 6, 4, Site(0))
    generator = torch.Generator().manual_seed(0)
    for part in sae.parameters():
        part.data = torch.randn(part.shape, generator=generator)
    sae.threshold.data.zero_()
    sae.requires_grad_(False)
    x = torch.randn(2, 5, 6, generator=generator)
    changed = splicing.without(2, sae.encode, sae.decoder[2])(x)
    active = sae.encode(x)
    silenced = active.clone()
    silenced[..., 2] = 0
    torch.testing.assert_close(changed, sae.decode(silenced) + (x - sae(x)))
    assert torch.equal(changed[active[..., 2] == 0], x[active[..., 2] == 0])


def test_moments_and_components_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 4).astype(np.float32)
    result = moments(iter([torch.from_numpy(part)[None] for part in np.split(x, [100, 250])]))
    np.testing.assert_allclose(result.covariance, np.cov(x.T, bias=True), rtol=1e-6, atol=1e-6)
    made = result.components(2)(torch.from_numpy(x))
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = x.mean(0) + (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(made, expected, atol=1e-3)


def test_random_directions_fit_by_least_squares():
    x = torch.randn(3, 40, 10, generator=torch.Generator().manual_seed(0)) + 1
    mean = x.flatten(0, 1).mean(0)
    few, all_of_them = (random_directions(mean, 30, k, seed=0) for k in (3, 10))
    row = x[1, 7] - mean
    chosen = few.directions[(few.directions @ row).abs().argsort(descending=True)[:3]].numpy()
    weights, *_ = np.linalg.lstsq(chosen.T, row.numpy(), rcond=None)
    expected = mean.numpy() + weights @ chosen
    np.testing.assert_allclose(few(x)[1, 7].numpy(), expected, atol=1e-4)
    assert (all_of_them(x) - x).square().mean() < 1e-4  # as many directions as dimensions


def test_firing_counts_and_examples_are_those_of_the_whole_text(bundled, prompts):
    site, some = Site(0), prompts[:6]
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder("topk", bundled.heads * bundled.geometry.value_size, 40, site, k=3)
    sae.encoder.data = torch.randn(sae.encoder.shape, generator=generator)
    sae.requires_grad_(False)
    result = evaluation.firing(stream(bundled, some, site), sae, len(some), examples=2)
    active = [sae.encode(vectors(bundled, torch.tensor([list(ids)]), site)[0]) for ids in some]
    np.testing.assert_array_equal(result.fired, [(each > 0).sum(0).tolist() for each in active])
    np.testing.assert_allclose(result.l0, 3, atol=1e-6)
    energy = sum(each.double().square().sum(0) for each in active)
    np.testing.assert_allclose(result.energy, energy, rtol=1e-4)
    assert result.density.shape == (6, 40)
    for feature in range(40):
        strongest = max(float(each[:, feature].max()) for each in active)
        shown = result.examples(feature)
        assert bool(shown) == (strongest > 0)
        if shown:
            best = shown[0]
            assert best.activation == pytest.approx(strongest, rel=1e-5)
            there = float(active[best.prompt][best.position, feature])
            assert there == pytest.approx(strongest, rel=1e-4)
            assert [each.activation for each in shown] == sorted(
                (each.activation for each in shown), reverse=True
            )


def test_a_share_of_sums_has_an_interval_that_holds_it():
    rng = np.random.default_rng(0)
    whole = rng.uniform(0.1, 10, size=(200, 1))
    lost = whole * (0.3 + 0.1 * rng.normal(size=(200, 2)))
    kept, low, high = evaluation.share_kept(lost, whole)
    np.testing.assert_allclose(kept, 1 - lost.sum(0) / whole.sum(), rtol=1e-12)
    assert (low < 0.7).all()
    assert (high > 0.7).all()
    assert (high - low < 0.05).all()
    assert np.isnan(evaluation.share_kept(lost[:1], whole[:1])[1]).all()


def test_pieces_are_opened_as_the_tokenizer_does():
    tokenizer = SimpleNamespace()
    model = SimpleNamespace(tokenizer=tokenizer, encode=lambda text: [0])
    assert cut(model, [[0, 1, 2, 3, 4, 5], [0, 7]], 3) == [[0, 1, 2], [0, 3, 4], [0, 7]]
    assert cut(model, [[1, 2, 3, 4]], 2) == [[1, 2], [3, 4]]
    check_message("prompts: none has 2 tokens", cut, model, [[0], [3]], 4)


def test_training_on_a_model_explains_more_than_components_and_states_its_cost(bundled, prompts):
    site, settings = Site(1), Settings(features=128, k=6, steps=300, batch=128)
    texts = read(bundled, tasks.make("story", bundled.tokenizer, 60, 1)).ids
    cost = estimate(bundled, texts, site, settings)
    ran, reports = [], []
    with work.counting(lambda tokens, backward: ran.append(tokens)):
        sae = train(bundled, texts, site, settings, report=lambda *at: reports.append(at))
    assert sum(ran) == cost.tokens * 2  # two layers
    assert reports[-1] == (300, 300)
    assert "300 steps" in str(cost)
    assert sae.about["revision"] == bundled.revision
    mean = moments(batch for _, batch in stream(bundled, texts, site))
    codes = {
        "sae": sae,
        "components": mean.components(6),
        "random": random_directions(mean.mean.float(), 128, 6, 0),
    }
    squares = evaluation.squares(
        stream(bundled, prompts, site), mean.mean.float(), codes, len(prompts)
    )
    explained, *_ = evaluation.share_kept(squares[:, :-1], squares[:, -1:])
    assert explained[0] > explained[1] + 0.05 > explained[2]
    check_message("sae: it reads vectors of", sae.check, 3, 5)


def test_relu_at_its_defaults_beats_as_many_components_in_a_short_training(bundled):
    site = Site(2)
    stories = tasks.make("story", bundled.tokenizer, 96, 1)
    texts = [bundled.encode(prompt.clean) for prompt in stories.prompts]
    fitted, held = texts[:64], texts[64:]
    sae = train(bundled, fitted, site, Settings("relu", 256, steps=300))
    fires = evaluation.firing(stream(bundled, held, site), sae, len(held))
    known = moments(batch for _, batch in stream(bundled, fitted, site))
    rewrites = {"sae": sae, "components": known.components(round(float(fires.l0.mean())))}
    squares = evaluation.squares(
        stream(bundled, held, site), known.mean.float(), rewrites, len(held)
    )
    explained, low, _ = evaluation.share_kept(squares[:, :2], squares[:, 2:])
    assert low[0] > explained[1] + 0.02


def test_a_layer_or_head_that_is_not_there_is_refused():
    model = random_llama()
    for site in (Site(99), Site(0, 99)):
        check_message("sae: no ", lambda site=site: list(stream(model, [[1, 2]], site)))
