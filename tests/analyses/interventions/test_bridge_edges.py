"""Edges of a TransformerBridge: those of the Hugging Face model inside it."""

import copy

import architectures
import numpy as np
import pytest
import torch
from bridges import bridge_of
from edge_pairs import pairs
from refusals import check_message
from transformers import PreTrainedTokenizerFast

from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.probes import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # TransformerLens warns of its dependencies


@pytest.fixture
def both(random_llama, tmp_path):
    """Make a bridge and its model, whose biases and gains are not those of the start."""
    random_llama.tokenizer.save_pretrained(tmp_path)
    words = PreTrainedTokenizerFast.from_pretrained(tmp_path)

    def made(name):
        module = architectures.build(name)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in module.parameters():
                if weight.ndim == 1:
                    weight.add_(0.3 * torch.randn_like(weight))
        return bridge_of(copy.deepcopy(module), words), load_model(module)

    return made


def measured(model):
    """Scores of all edges by EAP-IG, and the effects of some."""
    task = pairs(64)
    graph, scores = edge_scores(model, task, "logit_difference", "eap_ig", 2)
    edges = [*zip(*map(np.ndarray.tolist, graph.edges.nonzero()), strict=True)][::9]
    return scores, edge_effects(model, task, "logit_difference", edges)


def check_same(bridge, model):
    for found, expected in zip(measured(load_model(bridge)), measured(model), strict=True):
        bar = 1e-5 * np.nanmax(np.abs(expected))
        np.testing.assert_allclose(found, expected, atol=bar)


@pytest.mark.requirement("E3")
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma3_text", "olmo2"])
def test_a_bridge_has_the_edges_of_its_model(name, both):
    bridge, model = both(name)
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_attn_result(True)
    check_same(bridge, model)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_compatibility_without_processed_weights_changes_nothing(name, both):
    bridge, model = both(name)
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    check_same(bridge, model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_folded_and_centred_weights_have_the_same_edges(name, both):
    """The logits are shifted all alike, which no difference of logits sees."""
    bridge, model = both(name)
    bridge.enable_compatibility_mode(disable_warnings=True)
    unembedding = [one.get_output_embeddings() for one in (bridge.original_model, model.module)]
    assert not torch.equal(unembedding[0].weight, unembedding[1].weight)
    check_same(bridge, model)


def test_a_hook_that_would_see_the_parts_is_refused_by_name(both):
    bridge, _ = both("llama")
    model = load_model(bridge)
    with bridge.hooks([("blocks.1.hook_resid_pre", lambda value, hook: value)]):
        check_message(r"^blocks\.1\.hook_in:", edge_scores, model, pairs(64), "logit_difference")
    assert np.isfinite(edge_scores(model, pairs(64), "logit_difference", "eap")[1]).any()
