"""The bundled model at 1024 tokens: every statistic against eager attention, memory linear."""

from typing import Any

import numpy as np
import pytest
import torch

from headscope.kernels import statistics
from headscope.probes import capture, load_model
from headscope.probes.capturing.memory_measurement import PeakTensorBytes
from headscope.probes.models.model import Model

OPTIONS: dict[str, Any] = {
    "first": 4, "offsets": (0, 1, 2), "tile": 16, "clip": 200, "recent": 64, "share": 0.9, "k": 8,
    "horizon": (10, 50), "last": 64,
}  # fmt: skip


def test_1024_tokens_agree_with_eager_attention(bundled, ids, eager, recompute, choose):
    # Half of the prompt repeats the other half, so that induction has something to find.
    half = ids(511, vocabulary=bundled.vocabulary)
    prompt = [bundled.tokenizer.bos_token_id, *half, *half, half[0]]
    result = capture(
        bundled,
        [prompt],
        stats=statistics.names(),
        keep=("q", "k", "v"),
        targets=("duplicate", "induction"),
        spans={"start": [range(16)], "copy": [range(512, 1024)], "both": [range(8, 600)]},
        **OPTIONS,
    )
    assert result.sizes["query"] == 1024
    weights, mixed, _ = eager(bundled.module, prompt)
    for layer in range(bundled.layers):
        selected = result.isel(prompt=0, layer=layer)
        for name in sorted(set(statistics.names()) - {"z", "lse"}):
            if name in choose:
                choose[name](selected, weights=weights[layer], share=OPTIONS["share"])
                continue
            cut = {"start": range(16), "copy": range(512, 1024), "both": range(8, 600)}
            expected = recompute(weights[layer], name, prompt, None, spans=cut, **OPTIONS)
            agree(selected[name].values, expected, f"{name} L{layer}")
        agree(
            selected["z"].transpose("query", "head", "size").values.reshape(1024, -1), mixed[layer]
        )
        group = selected["kv_group"].values
        query, key = selected["q"].values.astype(float), selected["k"].values.astype(float)[group]
        best = weights[layer].argmax(-1)
        scores = np.einsum("hqd,hqd->hq", query, np.take_along_axis(key, best[..., None], 1))
        lse = scores * float(selected["logit_scale"]) - np.log(weights[layer].max(-1))
        agree(selected["lse"].values, lse)


def agree(actual: Any, expected: Any, name: str = "") -> None:
    """Compare to 5e-5, of the largest value where that is above 1: distances reach 200 tokens."""
    allowed = 5e-5 * max(1.0, float(np.nanmax(np.abs(expected))))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed, err_msg=name)


def measured(model: Model, length: int) -> PeakTensorBytes:
    stats = tuple(name for name in statistics.names() if name not in ("pattern", "z"))
    with PeakTensorBytes() as meter:
        spans = {"start": [range(length // 2)], "even": [range(0, length, 2)]}
        capture(model, [[2 + at % 50 for at in range(length)]], stats=stats, spans=spans)
    return meter


@pytest.fixture
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels of one head, that growth may show in the one thread that a meter sees."""
    monkeypatch.setattr("headscope.kernels.panels.plan.PANEL_ELEMENTS", 1 << 12)


@pytest.mark.requirement("F1")
@pytest.mark.usefixtures("small_panels")
def test_memory_grows_linearly_on_the_bundled_model(bundled):
    half, full = measured(bundled, 512), measured(bundled, 1024)
    assert full.peak < 2.2 * half.peak
    assert full.largest <= 2.2 * half.largest
    # The maps of one layer have 8 × N × N elements.
    assert full.largest < 8 * 1024 * 1024 / 4


@pytest.mark.requirement("F1")
@pytest.mark.usefixtures("small_panels")
def test_memory_grows_linearly_where_a_map_would_dwarf_the_rest(tiny):
    model = load_model(tiny("llama", max_position_embeddings=4096))
    half, full = measured(model, 2048), measured(model, 4096)
    assert full.peak < 2.2 * half.peak
    assert full.largest <= 2.2 * half.largest
    assert full.largest < 4096 * 4096 / 4  # a quarter of one head's map


def test_the_meter_sees_a_map():
    with PeakTensorBytes() as meter:
        query = torch.randn(300, 8)
        weights = (query @ query.T).softmax(-1)
        del weights
    assert meter.largest == 300 * 300
    assert meter.peak >= 2 * 4 * 300 * 300
    assert meter.now < meter.peak / 2
