import numpy as np
import pytest
import torch
from constructed import INDUCTION, KEYS, NAMES, circuit, repeated
from refusals import check_message

from headscope import viz
from headscope.analyses import sae_features
from headscope.analyses._runtime.runner import execute
from headscope.analyses._sparse_autoencoders.autoencoder import SparseAutoencoder
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.probes import capture
from headscope.probes.prompts import tasks


@pytest.fixture(scope="module")
def held(bundled):
    story = tasks.make("story", bundled.tokenizer, 40, 0)
    return capture(bundled, story, stats=())


@pytest.fixture(scope="module")
def result(held, bundled):
    return sae_features.run(held, bundled, layer=3, features=128, k=6, steps=400, shown=6)


def word_autoencoder(model):
    """A feature for every word in the value of the induction head, which copies words."""
    layer, head = INDUCTION
    words = model.vocabulary
    size = model.geometry.value_size
    sae = SparseAutoencoder("relu", model.heads * size, words, Site(layer))
    rows = torch.eye(model.heads * size)[head * size : head * size + words]
    sae.decoder.data, sae.encoder.data = rows, rows.T.clone()
    sae.encoder_bias.data.fill_(-0.5)
    return sae.requires_grad_(False)


@pytest.mark.requirement("E1")
def test_features_of_a_known_head_have_its_words_and_are_what_it_does():
    """Each feature is one word in the copying head's value: written by it, promoting that word."""
    model = circuit()
    chosen = [model.encode(word)[-1] for word in (*KEYS[:3], *NAMES[:2])]
    result = sae_features.run(
        capture(model, repeated(24), stats=()), model, word_autoencoder(model),
        chosen=",".join(map(str, chosen)), words=1, causal_prompts=12,
    )  # fmt: skip
    assert result["promotes"].values.tolist() == [
        model.to_str_tokens([at])[0].strip() for at in chosen
    ]
    assert set(result["writer"].values) == {"L1H0"}
    np.testing.assert_allclose(result["by_head"].values[:, INDUCTION[1]], 1)
    # Without its feature the word is not predicted any more.
    assert (result["words_lost"].values > 0.5).all()
    assert (result["lost"].values > 0).all()
    # It fires where the word comes next.
    lanes, texts = result["examples"].values, result["token"].values
    middle = lanes.shape[2] // 2
    for row, feature in enumerate(chosen):
        word = model.to_str_tokens([feature])[0]
        for example in range(lanes.shape[1]):
            if np.isfinite(lanes[row, example, middle]):
                assert lanes[row, example, middle] == np.nanmax(lanes[row, example])
                assert texts[row, example, middle + 1] in (word, "")


def test_numbers_of_the_bundled_model_beat_components_and_random_directions(result):
    explained, recovered = result["explained_variance"].values, result["loss_recovered"].values
    assert explained[0] > explained[1:].max() + 0.05
    assert recovered[0] > 0.5
    loss = dict(zip(result["condition"].values, result["loss"].values, strict=True))
    assert loss["intact"] <= loss["sparse autoencoder"] + 1e-3
    assert loss["zero"] > loss["sparse autoencoder"] + 0.1
    assert float(result["l0"]) == pytest.approx(6, abs=0.2)
    assert 0 <= float(result["dead"]) < 0.9
    assert result.attrs["verdict"] in ("supported", "disagreement")
    np.testing.assert_allclose(result["by_head"].sum("head"), 1, atol=1e-6)


def test_every_described_feature_has_lanes_and_words(result):
    assert result["examples"].dims == ("described", "example", "query")
    lanes = result["examples"].values
    middle = lanes.shape[2] // 2
    assert (lanes[:, 0, middle] > 0).all()
    np.testing.assert_allclose(lanes[:, :, middle], np.nanmax(lanes, axis=2), rtol=1e-5)
    assert all(result["promotes"].values)
    figure = viz.draw(result.sel(described=result["described"][0]), "examples")
    assert figure.data


def test_named_features_are_described(held, bundled):
    small = {"features": 32, "k": 4, "steps": 20, "causal_prompts": 2}
    result = sae_features.run(held, bundled, chosen="3, 17", **small)
    assert result["described"].values.tolist() == ["feature 3", "feature 17"]
    check_message("chosen: '40'", sae_features.run, held, bundled, chosen="40", **small)


def test_the_runner_supplies_what_is_given(held, bundled):
    width = bundled.heads * bundled.geometry.value_size
    sae = SparseAutoencoder("relu", width, 4, Site(2))
    sae.encoder.data[:4] = torch.eye(4)
    sae.decoder.data[:, :4] = torch.eye(4)
    sae.requires_grad_(False)
    options = {"shown": 1, "causal_prompts": 2}
    result = execute("sae_features", bundled, capture=held, sae=sae, options=options)
    assert result.attrs["sae"]["features"] == 4
    assert result.attrs["sae"]["hook_name"] == "blocks.2.attn.hook_z"
    assert not result.attrs["sae"]["trained_here"]
    narrow = SparseAutoencoder("relu", 7, 4, Site(2))
    check_message("sae: it reads vectors of 7", sae_features.run, held, bundled, narrow)
    selected = held.isel(prompt=slice(1))
    check_message("prompts: sae_features fits on half", sae_features.run, selected, bundled)
