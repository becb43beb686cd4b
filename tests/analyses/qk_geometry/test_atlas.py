import numpy as np
import pytest
import torch
from constructed import INDUCTION, PREVIOUS, repeated
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr

from headscope import viz
from headscope.analyses import atlas, importance
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
        found = np.argsort(-values, axis=None)[:2]
        assert {divmod(int(at), 4) for at in found} == {PREVIOUS, INDUCTION}
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
    found = atlas.run(cap, random_llama, task, skip=2)
    other = importance.run(cap, random_llama, task)
    np.testing.assert_allclose(found["lost_metric"], other["zero_ablation"], atol=1e-6)
    np.testing.assert_allclose(found["gate_gradient"], other["gate_gradient"], atol=1e-6)
    encoded, apart = encode(task, random_llama.tokenizer), []
    for ids, asked in zip(encoded.ids, encoded.questions, strict=True):
        at, given = [each.at for each in asked], torch.tensor([list(ids)])
        with torch.no_grad():
            pair = [
                logits(random_llama, given, edits)[0, at].double().softmax(-1).numpy()
                for edits in ((), (Ablate(heads=((1, 2),)),))
            ]
        apart.append((jensenshannon(*pair, base=2, axis=-1) ** 2).mean())
    assert float(found["output_divergence"].values[1, 2]) == pytest.approx(np.mean(apart), rel=1e-3)
    pair = [np.abs(found[name].values).ravel() for name in ("lost_metric", "output_divergence")]
    assert float(found["agreement"].values[0, 2]) == pytest.approx(spearmanr(*pair).statistic)


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
def test_heads_that_look_alike_stand_together_on_the_map(result):
    x, y = result["x"].values[0], result["y"].values[0]
    heads = result["label"].values.tolist()
    uniform = [heads.index(name) for name in ("L0H2", "L1H1", "L1H2", "L1H3")]
    assert np.ptp(x[uniform]) < 1e-4
    assert np.ptp(y[uniform]) < 1e-4
    previous, sink = heads.index("L0H0"), heads.index("L0H1")
    for one, other in ((previous, sink), (previous, uniform[0]), (sink, uniform[0])):
        assert np.hypot(x[one] - x[other], y[one] - y[other]) > 0.3
    figure = viz.draw(result, "atlas")
    assert len(figure.layout.updatemenus[0].buttons) == len(atlas.MAPS) * len(atlas.METRICS)
