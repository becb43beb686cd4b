import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr

from headscope import viz
from headscope.analyses import atlas, importance
from headscope.analyses._measurements import without_first
from headscope.probes import capture
from headscope.probes.attention.forward import logits
from headscope.probes.interventions import Ablate
from headscope.probes.prompts.tokens import encode

SHARED = {"stats": atlas.NEEDS, "keep": ("q", "k", "z")}


@pytest.fixture(scope="module")
def task():
    return repeated(n=3, length=6)


@pytest.fixture(scope="module")
def result(circuit, task):
    return atlas.run(capture(circuit, task, **SHARED), circuit, task, skip=2)


@pytest.mark.requirement("A12")
def test_every_measure_finds_the_two_heads_of_the_circuit(result):
    for name in ("lost_metric", "lost_log_probability", "output_divergence"):
        values = np.abs(result[name].values)
        actual = np.argsort(-values, axis=None)[:2]
        assert {divmod(int(at), 4) for at in actual} == {PREVIOUS, INDUCTION}
        assert result[name].attrs["evidence"] == "causal"
        rest = [values[head] for head in np.ndindex(2, 4) if head not in (PREVIOUS, INDUCTION)]
        assert max(rest) < 1e-3 * values.max()
    ranks = result["atlas"].values[0, :3]
    heads = result["label"].values.tolist()
    important = {heads.index("L0H0"), heads.index("L1H0")}
    assert {int(at) for row in ranks for at in np.argsort(-row)[:2]} == important


@pytest.mark.requirement("A12")
def test_the_measures_are_those_of_one_ablation_at_a_time(random_llama, task):
    cap = capture(random_llama, task, **SHARED)
    result = atlas.run(cap, random_llama, task, skip=2)
    other = importance.run(cap, random_llama, task)
    np.testing.assert_allclose(result["lost_metric"], other["zero_ablation"], atol=1e-6)
    np.testing.assert_allclose(result["gate_gradient"], other["gate_gradient"], atol=1e-6)
    encoded, apart = encode(task, random_llama.tokenizer), []
    for ids, asked in zip(encoded.ids, encoded.questions, strict=True):
        at, given = [each.at for each in asked], torch.tensor([list(ids)])
        with torch.no_grad():
            pair = [
                logits(random_llama, given, edits)[0, at].double().softmax(-1).numpy()
                for edits in ((), (Ablate(heads=((1, 2),)),))
            ]
        apart.append((jensenshannon(*pair, base=2, axis=-1) ** 2).mean())
    assert float(result["output_divergence"].values[1, 2]) == pytest.approx(
        np.mean(apart), rel=1e-3
    )
    pair = [np.abs(result[name].values).ravel() for name in ("lost_metric", "output_divergence")]
    assert float(result["agreement"].values[0, 2]) == pytest.approx(spearmanr(*pair).statistic)


@pytest.mark.requirement("A12")
def test_strength_stands_at_the_distance_where_a_head_looks(result):
    strength = result["strength"]
    np.testing.assert_allclose(strength.sum("bin").values, 1.0, atol=1e-4)
    at = dict(zip(strength["bin"].values.tolist(), range(strength.sizes["bin"]), strict=True))
    layer, head = PREVIOUS
    # The first query can only see itself.
    assert float(strength.values[at[1], layer, head]) == pytest.approx(12 / 13, abs=0.01)
    x, y = result["x"].values[1], result["y"].values[1]
    place = result["label"].values.tolist().index("L0H0")
    assert x[place] == pytest.approx(np.log2(1 + 12 / 13), abs=0.02)
    assert y[place] > 0.99


@pytest.mark.requirement("A12")
def test_strength_and_the_map_leave_out_a_first_token_that_takes_much(circuit, task, monkeypatch):
    cap = capture(circuit, task, **SHARED)
    for large, first in ((-1.0, "strength_without_first"), (1.0, "strength")):
        monkeypatch.setattr(without_first, "LARGE", large)
        result = atlas.run(cap, circuit, task, skip=2)
        assert next(name for name in result if name.startswith("strength")) == first
        assert ("without the first token" in result["x"].attrs["long_name"]) == (large < 0)
        np.testing.assert_allclose(
            result["strength_without_first"].sum("bin").values[PREVIOUS], 1.0, atol=1e-4
        )
    # The sink head has nothing left, the uniform one all that is not the first token.
    uniform = result["strength_without_first"].values[:, 0, 2]
    lengths = np.arange(2, 14)
    expected = [np.mean([1 / (n - 1) for n in lengths]),
                np.mean([(n > 2) / (n - 1) for n in lengths])]  # fmt: skip
    np.testing.assert_allclose(uniform[:2], expected, atol=1e-3)


@pytest.mark.requirement("A12")
def test_the_map_is_the_principal_components_of_the_models_own_patterns(random_llama, task):
    cap = capture(random_llama, task, stats=(*atlas.NEEDS, "pattern"), keep=("q", "k"))
    result = atlas.run(cap, random_llama, task, skip=2, queries=100)
    dims = ("prompt", "layer", "head", "query", "key")
    weights = cap["pattern"].transpose(*dims).values.astype(np.float64)
    length = weights.shape[-1]
    pooled = np.zeros((*weights.shape[1:3], 2 + 2 * 8 + 32))
    for query in range(2, length):
        for key in range(query + 1):
            # The first key, the eight nearest, 32 tiles of the rest.
            cell = 0 if key == 0 else 1 + query - key
            if query - key >= 8 and key:
                cell = 17 + key * 32 // length
            pooled[..., cell] += weights[:, :, :, query, key].mean(0) / (length - 2)
    features = np.sqrt(pooled.reshape(-1, pooled.shape[-1]))
    features -= features.mean(0)
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    for axis, values in enumerate((result["x"].values[0], result["y"].values[0])):
        expected = left[:, axis] * sizes[axis]
        sign = np.sign(expected @ values)
        np.testing.assert_allclose(values * sign, expected, atol=1e-4)
    shown = 100 * (sizes[:2] ** 2).sum() / (sizes**2).sum()
    output = result["atlas"].attrs["convention"].partition("components show ")[2].partition("%")[0]
    assert float(output) == pytest.approx(shown, abs=0.1)


@pytest.mark.requirement("A12")
def test_heads_that_attend_alike_stand_together_on_the_map(result):
    x, y = result["x"].values[0], result["y"].values[0]
    heads = result["label"].values.tolist()
    uniform = [heads.index(name) for name in ("L0H2", "L1H1", "L1H2", "L1H3")]
    assert np.ptp(x[uniform]) < 1e-4
    assert np.ptp(y[uniform]) < 1e-4
    previous, sink = heads.index("L0H0"), heads.index("L0H1")
    for first, second in ((previous, sink), (previous, uniform[0]), (sink, uniform[0])):
        assert np.hypot(x[first] - x[second], y[first] - y[second]) > 0.3
    figure = viz.draw(result, "atlas")
    assert len(figure.layout.updatemenus[0].buttons) == len(atlas.MAPS) * len(atlas.METRICS)
