import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from transformers import LlamaConfig, LlamaForCausalLM

from headscope import viz
from headscope.analyses import embedding
from headscope.analyses._measurements import qk_rows
from headscope.probes import capture, load_model, pattern
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A17")

KEEP = ("q", "k")


@pytest.fixture(scope="module")
def story(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=3, seed=3)
    return capture(bundled, task, stats=("lse",), keep=KEEP)


def softmax(logits: np.ndarray) -> np.ndarray:
    seen = np.where(np.tril(np.ones_like(logits)) > 0, logits, -np.inf)
    weights = np.exp(seen - seen.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def vectors(story, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    selected = story.isel(prompt=0, layer=layer)
    length = int(selected["length"])
    group = int(selected["kv_group"].values[head])
    q, k = selected["q"].values[head, :length], selected["k"].values[group, :length]
    return q.astype(float), k.astype(float)


@pytest.mark.parametrize("scaling", embedding.SCALINGS)
def test_the_joint_space_has_the_attention_weights_of_the_model(story, scaling):
    q, k = vectors(story, 1, 6)
    joint = embedding.join([q], [k], scaling)
    weights = softmax(joint.queries @ joint.keys.T * float(story["logit_scale"].values[1]))
    np.testing.assert_allclose(weights, pattern(story, 1, 6).values, atol=2e-5)
    np.testing.assert_allclose(joint.queries.mean(0), joint.keys.mean(0), atol=1e-9)


def test_scaling_brings_both_to_one_size_or_makes_closeness_follow_the_products(story):
    q, k = vectors(story, 1, 6)
    equal = embedding.join([q], [k], "norm")
    sizes = [((each - each.mean(0)) ** 2).sum() for each in (equal.queries, equal.keys)]
    assert sizes[0] == pytest.approx(sizes[1])
    centred, correlated = k - k.mean(0), []
    for factor in (equal.factor, embedding.join([q], [k], "correlation").factor):
        places = (q / factor, centred * factor + q.mean(0) / factor)
        distance = ((places[0][:, None] - places[1][None]) ** 2).sum(-1)
        correlated.append(np.corrcoef(-distance.ravel(), (q @ centred.T).ravel())[0, 1])
    assert correlated[1] >= correlated[0]


def test_a_head_of_two_channels_is_drawn_without_loss():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, head_dim=2, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    model = load_model(LlamaForCausalLM(config).eval())
    cap = capture(model, [list(range(1, 40))], stats=(), keep=KEEP)
    result = embedding.run(cap, points=100)
    np.testing.assert_allclose(result["explained"].values, 1.0)
    np.testing.assert_allclose(result["fidelity"].values, result["plane_fidelity"].values)
    # The picture is a rotation of the joint space: all distances are kept.
    q, k = vectors(cap, 0, 1)
    joint = embedding.join([q], [k])
    drawn = np.stack([result["x"].values[1], result["y"].values[1]], axis=1)
    together = np.concatenate([joint.queries, joint.keys])
    np.testing.assert_allclose(pdist(drawn), pdist(together), rtol=1e-6)


def rows(queries: np.ndarray, keys: np.ndarray) -> qk_rows.Rows:
    count = queries.shape[1]
    seen = np.ones((count, count), bool)
    bias, sinks = np.zeros((1, 1, 1)), np.empty(0)
    return qk_rows.Rows(queries, keys, np.arange(count), 1.0, np.nan, bias, seen, sinks)


def test_the_gap_is_one_for_queries_like_keys_and_grows_with_their_distance():
    rng = np.random.default_rng(0)
    keys = np.repeat(rng.normal(size=(1, 3000, 6)), 3, axis=0)
    queries = rng.normal(size=(3, 3000, 6))
    queries[1, :, 0] += 5.0
    queries[2] *= 3.0
    (like, moved, wide) = embedding._gaps([rows(queries, keys)], 0)[0]
    assert like == pytest.approx(1.0, abs=0.03)
    # Of six independent normal channels: the mean length is that of a chi with 6 degrees.
    chi = np.sqrt(2) * 3.323351 / 2
    far = rng.normal(size=(100000, 6))
    far[:, 0] += 5.0
    assert moved == pytest.approx(np.linalg.norm(far, axis=-1).mean() / chi, rel=0.04)
    assert wide == pytest.approx(3.0, rel=0.04)


def test_queries_of_a_trained_model_lie_outside_its_keys_and_the_picture_has_a_view(story):
    result = embedding.run(story, points=10)
    assert float(result["gap"].mean()) > 1.2
    array = result["embedding"]
    assert (array.sizes["plane"], array.sizes["point"]) == (32, 20)
    assert result["kind"].values.tolist() == ["query"] * 10 + ["key"] * 10
    positions = array.values[0]
    tokens = story["token"].values[0]
    for at, (position, name) in enumerate(zip(positions, result["label"].values, strict=True)):
        assert name == f"{result['kind'].values[at]} {int(position)}: {tokens[int(position)]}"
    assert len(viz.draw(result, "embedding").layout.updatemenus[0].buttons) == 32
