"""Sink topology: closed forms on planted maps, and an encoder that attends to both ends."""

import numpy as np
import pytest
import torch
import xarray as xr
from architectures import eager_maps
from constructed import KEYS, WORDS
from transformers import BertConfig, BertForMaskedLM

from headscope.analyses import sink_topology
from headscope.probes import capture, load_model

pytestmark = pytest.mark.requirement("A3")

SIZE = 40


def received(columns: dict[int, float], *, causal: bool) -> xr.Dataset:
    """One head whose keys receive the given weights."""
    alpha = np.full((2, 1, 1, SIZE), 0.01)
    for key, value in columns.items():
        alpha[..., key] = value
    coords = {"length": ("prompt", [SIZE, SIZE]), "causal": ("layer", [causal])}
    data = {"received": (("prompt", "layer", "head", "key"), alpha)}
    return xr.Dataset(data, {"layer": [0], "head": [0], **coords})


@pytest.mark.parametrize(
    ("columns", "causal", "kind", "points"),
    [
        ({0: 0.9}, True, "centralised", 1.0),
        ({5: 0.4}, True, "centralised", 1.0),
        ({0: 0.4, SIZE - 1: 0.4}, False, "bidirectional", 2.0),
        # In causal order only the last query sees the last key, so it is no reference point.
        ({0: 0.4, SIZE - 1: 0.4}, True, "centralised", 1.0),
        ({3: 0.35, 9: 0.35, 15: 0.35, 20: 0.35}, True, "distributed", 4.0),
        ({0: 0.2}, True, "none", 0.0),
    ],
)
def test_kinds_and_reference_points(random_llama, columns, causal, kind, points):
    result = sink_topology.run(received(columns, causal=causal), random_llama)
    assert result.attrs["topology"] == kind
    assert float(result["topology_share"].sel(kind=kind)) == 1.0
    assert float(result["reference_points"]) == pytest.approx(points)
    assert ("at_last" in result) is not causal


@torch.no_grad()
def encoder(last: bool):
    """A BERT of one layer that attends to <cls> (token 0), and to <sep> (token 1) where asked."""
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    module = BertForMaskedLM(config).eval()
    table = module.bert.embeddings.word_embeddings.weight
    table[:, 0] = 0.0
    table[0, 0] = 1.0
    if last:
        table[1, 0] = 1.0
    attention = module.bert.encoder.layer[0].attention.self
    for part in (attention.query, attention.key):
        part.weight.zero_()
        part.bias.zero_()
    attention.query.bias[[0, 16]] = 10.0
    attention.key.weight[[0, 16], 0] = 1.0
    return load_model(module)


@pytest.mark.parametrize(("last", "kind"), [(True, "bidirectional"), (False, "centralised")])
def test_an_encoder_with_absolute_positions(last, kind):
    model = encoder(last)
    ids = [[0, *range(2, 30), 1], [0, *range(9, 30), 1]]
    result = sink_topology.run(capture(model, ids, stats=("received",)), model)
    assert result.attrs["topology"] == kind
    assert result.attrs["positional_encoding"] == "absolute (one vector a position)"
    at_last = [eager_maps(model.module, token)[0, :, :, -1].mean(-1) for token in ids]
    np.testing.assert_allclose(result["at_last"][0], torch.stack(at_last).mean(0), atol=1e-5)
    assert (float(result["at_last"].min()) > 0.3) is last


def test_a_rotary_sink_is_centralised(rotary_sink):
    ids = [[0, *(WORDS.index(word) for word in (*KEYS, *KEYS))]] * 2
    result = sink_topology.run(capture(rotary_sink, ids, stats=("received",)), rotary_sink)
    assert result.attrs["topology"] == "centralised"
    assert result.attrs["positional_encoding"] == "rotary (default)"
    assert result.attrs["reference_tokens"][0]["token"] == "<bos>"
