import copy

import numpy as np
import pytest
import torch
from refusals import check_refusal
from sklearn.decomposition import PCA
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from headscope.analyses import head_rank
from headscope.analyses.qk_geometry import _key_pca
from headscope.probes import capture, load_model
from headscope.probes.prompts import tasks

pytestmark = pytest.mark.requirement("A15")

IDS = np.random.default_rng(0).integers(1, 35, size=(3, 40)).tolist()


def captured(model, ids=IDS):
    return capture(model, ids, stats=(), keep=("q", "k", "resid"))


@pytest.fixture(scope="module")
def planted(random_llama):
    """Head L0H1 compares in one direction, L0H2 writes in one; keys of L1 KV1 lie in a line."""
    module = copy.deepcopy(random_llama.module)
    first, second = (layer.self_attn for layer in module.model.layers)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        first.q_proj.weight[8:16] = draw(8, 1) @ draw(1, 32)
        first.o_proj.weight[:, 16:24] = draw(32, 1) @ draw(1, 8)
        direction = torch.zeros(8, 1)
        direction[0] = direction[2] = 1.0
        second.k_proj.weight[8:16] = direction @ draw(1, 32)
    return load_model(module)


def test_ranks_are_those_of_the_whole_matrices(random_llama):
    result = head_rank.run(captured(random_llama), random_llama)
    attention = random_llama.module.model.layers[1].self_attn
    parts = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    q, k, v, o = (weight.detach().double().numpy() for weight in parts)
    for head in range(4):
        mine, group = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        forms = {"qk": q[mine].T @ k[group], "ov": (o[:, mine] @ v[group]).T}
        for name, form in forms.items():
            values = np.linalg.svd(form, compute_uv=False)
            stable = (np.linalg.norm(form) / np.linalg.norm(form, 2)) ** 2
            share = values[:8] / values[:8].sum()
            effective = np.exp(-(share * np.log(share)).sum())
            assert result[f"{name}_stable_rank"].values[1, head] == pytest.approx(stable)
            assert result[f"{name}_effective_rank"].values[1, head] == pytest.approx(effective)
            assert stable <= 8  # the head size, whatever the length of the text


def test_planted_directions_are_counted(planted):
    result = head_rank.run(captured(planted), planted)
    for name, head in (("qk", 1), ("ov", 2)):
        for kind in ("stable", "effective"):
            values = result[f"{name}_{kind}_rank"].values
            assert values[0, head] == pytest.approx(1.0, abs=1e-4)
            assert np.delete(values[0], head).min() > 1.5


@pytest.fixture(scope="module")
def trained(bundled):
    task = tasks.make("story", tokenizer=bundled.tokenizer, n=16, seed=0)
    return head_rank.run(captured(bundled, task), bundled)


def test_keys_have_a_lower_rank_before_their_rotation(planted, bundled, trained):
    result = head_rank.run(captured(planted), planted, variance=0.999)
    assert result["key_rank_before_rotation"].values[1, 1] == 1
    # Two channels of different frequencies turn out of their line, each into a plane.
    assert result["key_rank"].values[1, 1] == 4
    # Loki's finding, on trained weights: the rotation spreads the keys.
    before, after = (trained[name].values for name in ("key_rank_before_rotation", "key_rank"))
    assert (before < after).all()
    assert after.mean() < 0.6 * bundled.head_size


def test_components_are_those_of_scikit_learn():
    vectors = np.random.default_rng(2).normal(size=(60, 9)) * np.linspace(0.1, 3, 9)
    share = np.cumsum(PCA().fit(vectors).explained_variance_ratio_)
    for variance in (0.5, 0.9, 0.99):
        expected = int((share < variance).sum()) + 1
        assert int(_key_pca.components(vectors, variance)) == expected


def test_keys_in_their_components_do_what_whole_keys_do(planted, trained):
    # One prompt of one word: its keys are few, so all of their variance is all of their effect.
    assert head_rank.run(captured(planted), planted, variance=1.0)["moved"].values[0] < 1e-9
    own, random = trained["moved"].values
    assert own < 0.3 * random
    assert trained.attrs["verdict"] == "supported"


class AttentionOnly(LlamaDecoderLayer):
    skips = False

    def forward(self, hidden_states, **given):
        given = {name: given[name] for name in ("attention_mask", "position_embeddings")}
        result = self.self_attn(hidden_states=hidden_states, **given)[0]
        return hidden_states + result if self.skips else result


class WithSkips(AttentionOnly):
    skips = True


def deep(kind: type[LlamaDecoderLayer]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=8, num_hidden_layers=10,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    for layer in module.model.layers:
        layer.__class__ = kind
    return module


@pytest.mark.long
def test_attention_alone_loses_rank_with_depth_and_skip_connections_keep_it():
    actual = {}
    for kind in (AttentionOnly, WithSkips):
        model = load_model(deep(kind))
        cap = captured(model, IDS[:1])
        for norm in head_rank.NORMS:
            result = head_rank.run(cap, model, norm=norm, checked=1)
            actual[kind, norm] = result["to_equal_rows"].values
        assert result["boundary"].values[[0, -1]].tolist() == ["input", "after L9"]
    for norm in head_rank.NORMS:
        alone, skips = actual[AttentionOnly, norm], actual[WithSkips, norm]
        assert (np.diff(alone) < 0).all()
        assert alone[-1] < 0.1 * alone[0]
        assert skips[-1] > 0.5 * skips[0]


def test_distances_to_rank_one_are_those_of_a_dense_decomposition():
    matrix = np.random.default_rng(0).normal(size=(12, 7))
    values = np.linalg.svd(matrix, compute_uv=False)
    expected = np.sqrt(1 - values[0] ** 2 / (values**2).sum())
    assert head_rank.to_rank_one(matrix) == pytest.approx(expected)
    assert head_rank.to_rank_one(matrix.T) == pytest.approx(head_rank.to_rank_one(matrix))
    equal = np.outer(np.ones(5), np.arange(3.0))
    for norm in head_rank.NORMS:
        assert head_rank.to_equal_rows(equal, norm) == 0.0
        assert head_rank.to_equal_rows(matrix - matrix.mean(0), norm) == pytest.approx(1.0)
    # 1-norm: largest sum of a column; ∞-norm: largest sum of a row.
    one = np.array([[3.0, 0.0], [0.0, -1.0]])
    centred = one - one.mean(0)
    expected = np.sqrt(3.0 * 2.0) / 3.0
    assert np.abs(centred).sum(0).tolist() == [3.0, 1.0]
    assert head_rank.to_equal_rows(one, "composite") == pytest.approx(expected)


def test_bad_input_is_refused(random_llama):
    check_refusal("prompts", head_rank.run, captured(random_llama, [[1]]), random_llama)
