"""The benchmark of long texts: what is compared, what cannot run, and the table."""

from typing import Any

import context
import numpy as np
import torch
from refusals import check_refusal

from headscope.kernels.api import memory
from headscope_benchmarks import bridge
from headscope_benchmarks.tables import context_tables


def test_both_calls_see_the_same_model():
    captured = bridge.long_call("capture", 48, 2)()
    patterns = bridge.long_call("bridge_cache", 48, 2)()
    assert len(patterns) == bridge.LONG_LAYERS == captured.sizes["layer"]
    for layer, pattern in enumerate(patterns):
        entropy = -torch.xlogy(pattern[0].double(), pattern[0].double()).sum(-1)
        captured_entropy = captured["entropy"].isel(prompt=0, layer=layer)
        np.testing.assert_allclose(captured_entropy, entropy, atol=1e-4)


def test_a_cache_that_cannot_fit_is_named_and_left_out(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    measured: list[Any] = []

    def measure(cases: list[Any]) -> list[Any]:
        measured.extend(cases)
        return [(400_000_000, None)]

    monkeypatch.setattr(context, "measure_peaks", measure)
    result = context.measure((8192, 16384), (8192,))
    assert [case[1:3] for case in measured] == [("capture", 8192), ("capture", 16384)]
    assert result["rows"][0]["not_run"] == {"bridge_cache": "needs about 12.9 GB, 1.0 GB are free"}
    (table,) = context_tables(result)
    assert table.rows == (("8192", "400", "–", "–"), ("16384", "400", "–", "–"))
    assert "at most 1500 MB captured at 16384 tokens, met" in table.caption
    assert "Not run at 8192 tokens: bridge, needs about 12.9 GB" in table.caption
    monkeypatch.setattr(memory, "measurable", lambda: False)
    check_refusal("memory", context.measure, (8,), ())


def test_the_target_is_judged_from_the_result():
    row = {"length": 16384, "extra_bytes": {"capture": 2e9, "bridge_cache": 8e9}, "not_run": {}}
    (table,) = context_tables({"rows": [row], "setup": {"layers": 4, "heads": 8, "size": 64}})
    assert table.rows == (("16384", "2000", "8000", "4.0×"),)
    assert "not met" in table.caption
