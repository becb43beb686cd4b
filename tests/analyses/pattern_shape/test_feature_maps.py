import numpy as np
import pytest
import torch
from constructed import SINK, UNIFORM, WORDS
from refusals import check_refusal

from headscope.analyses import feature_maps
from headscope.probes import capture
from headscope.probes.interventions import Temperature

OPTIONS = {"stats": feature_maps.NEEDS, "keep": feature_maps.KEEP}


@pytest.fixture(scope="module")
def result(bundled):
    ids = [np.random.default_rng(seed).integers(2, 400, size=24).tolist() for seed in range(2)]
    captured = capture(bundled, ids, stats=("lse", "pattern"), keep=("q", "k"))
    return feature_maps.run(captured, queries=24), captured


@pytest.mark.requirement("A16")
def test_only_the_softmax_is_spiky_and_monotone_in_the_scores(result):
    actual = result[0]
    spiky = dict(zip(actual["feature_map"].values, actual["mean_spikiness"].values, strict=True))
    ordered = dict(
        zip(actual["feature_map"].values, actual["mean_monotonicity"].values, strict=True)
    )
    assert ordered.pop("softmax") > 0.999
    assert spiky["softmax"] > 0.6
    # The paper's claim: fixed maps lose spikiness, and with it the order of the scores.
    assert max(spiky[name] for name in ("elu", "relu", "taylor")) < spiky["softmax"] / 2
    assert max(ordered.values()) < 0.9


@pytest.mark.requirement("A16")
def test_weights_of_every_map_agree_with_torch(result):
    actual, captured = result
    own = torch.from_numpy(captured["pattern"].values).double()
    q, k = (torch.from_numpy(captured[name].values).double() for name in ("q", "k"))
    k = k.repeat_interleave(2, dim=2)
    scale = 32**-0.5
    scores = q @ k.mT * scale
    phi = torch.nn.functional
    maps = {
        "softmax": own,
        "taylor": 1 + scores + scores**2 / 2,
        "elu": (phi.elu(q * scale**0.5) + 1) @ (phi.elu(k * scale**0.5) + 1).mT,
        "relu": phi.relu(q) @ phi.relu(k).mT,
    }
    places = np.arange(12, 24)
    for number, (name, values) in enumerate(maps.items()):
        rows = values.tril()
        rows = rows / rows.sum(-1, keepdim=True)
        entropy = -torch.xlogy(rows, rows).sum(-1)[..., places]
        spiky = (1 - entropy / torch.log(torch.arange(13.0, 25.0).double())).mean(-1)
        distance = ((rows - own).abs().sum(-1) / 2)[..., places].mean(-1)
        for own_name, expected in (("map_spikiness", spiky), ("map_distance", distance)):
            one = actual[own_name].values[..., number]
            np.testing.assert_allclose(one, expected.mean(0), atol=1e-4, err_msg=name)


def test_an_even_head_stays_even_under_every_map(circuit):
    ids = [[0, *[WORDS.index("apple")] * 15]] * 2
    result = feature_maps.run(capture(circuit, ids, **OPTIONS))
    np.testing.assert_allclose(result["map_spikiness"].values[UNIFORM], 0, atol=1e-5)
    np.testing.assert_allclose(result["map_distance"].values[UNIFORM], 0, atol=1e-5)
    assert result["map_distance"].values[SINK][feature_maps.MAPS.index("elu")] > 0.5


def test_bad_input_is_refused(circuit):
    check_refusal("prompts", feature_maps.run, capture(circuit, [[0, 5, 6]], **OPTIONS))
    ids = [[0, *range(5, 20)]]
    edited = capture(circuit, ids, edits=(Temperature(heads=((0, 0),), value=3.0),), **OPTIONS)
    check_refusal("capture", feature_maps.run, edited)
