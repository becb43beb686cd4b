"""The host side of the Triton kernels: which tiles are visited, and which are masked."""

from typing import Any

import pytest
import torch
from refusals import check_refusal, refusal

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, attend
from headscope.kernels.dense import visible_keys
from headscope.kernels.triton import plan
from headscope.kernels.triton.launch import Launch


def real(batch: int, length: int, *kept: slice) -> torch.Tensor:
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for row, part in zip(mask, kept, strict=True):
        row[part] = True
    return mask


CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "causal": (100, 100, {}),
    "one token": (1, 1, {}),
    "window": (130, 130, {"window": 40}),
    "narrow window": (130, 130, {"window": 1}),
    "bidirectional": (63, 90, {"causal": False}),
    "bidirectional window": (130, 130, {"causal": False, "window": 20}),
    "decoding": (3, 100, {}),
    "more queries than keys": (100, 30, {}),
    "packed": (100, 100, {"lengths": (1, 70, 29)}),
    "padded": (100, 100, {"key_mask": real(2, 100, slice(40, None), slice(0, 9))}),
    "a text of padding": (100, 100, {"key_mask": real(2, 100, slice(0, 0), slice(0, 9))}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (64, 16), (128, 128)])
def test_tiles_hold_all_that_is_visible_and_are_masked_where_they_must(name, rows, columns):
    queries, keys, options = CASES[name]
    q, k = torch.zeros(2, 1, queries, 8), torch.zeros(2, 1, keys, 8)
    spec = AttentionSpec(**options)
    launch = Launch(q, k, k, spec.fit(q, k))
    position = torch.arange(queries) + (keys - queries if spec.causal else 0)
    mask = spec.key_mask
    everything = torch.ones(2, keys, dtype=torch.bool)
    sequence = torch.zeros(keys, dtype=torch.long)
    if spec.lengths is not None:
        sequence = torch.repeat_interleave(torch.tensor(spec.lengths))
    visible = visible_keys(spec, position, everything if mask is None else mask, sequence)[:, 0]
    # Order and window alone: what an unmasked tile takes for granted.
    unmasked = AttentionSpec(**{**options, "key_mask": None})
    ordered = visible_keys(unmasked, position, everything, sequence)[:, 0]
    bounds = launch.bounds(rows, columns)
    assert bounds.shape == (2, -(-queries // rows), 4)
    for batch in range(2):
        for tile, (start, full_start, full_stop, stop) in enumerate(bounds[batch].tolist()):
            part = slice(tile * rows, (tile + 1) * rows)
            assert not visible[batch, part, :start].any()
            assert not visible[batch, part, stop:].any()
            assert start <= full_start <= full_stop
            assert start % columns == full_start % columns == full_stop % columns == 0
            assert full_stop == full_start or full_stop <= stop
            assert ordered[batch, part, full_start:full_stop].all()


def test_few_tiles_are_masked():
    q = torch.zeros(1, 1, 1024, 8)
    launch = Launch(q, q, q, AttentionSpec(window=512).fit(q, q))
    _, full_start, full_stop, stop = launch.bounds(128, 128)[0].unbind(dim=1)
    visited, unmasked = (stop - full_start).sum(), (full_stop - full_start).sum()
    # The tiles of the diagonal and of the far side of the window, one each.
    assert unmasked // 128 == 0 + 1 + 2 + 3 + 4 * 3
    assert visited // 128 == unmasked // 128 + 8


def test_every_statistic_has_a_way():
    result = plan.ways(statistics.names())
    assert set(result) == set(statistics.names())
    assert {result[name] for name in ("z", "lse", "entropy", "max_weight")} == {"forward"}
    assert plan.ways(("entropy", "lse"), stock=True)["lse"] == "forward"
    assert plan.ways(("entropy", "lse"), stock=True)["entropy"] != "forward"


def test_without_a_measurement_the_fused_forward_pass_is_used():
    assert plan.forward_for(75, 64, torch.float16, AttentionSpec()) == "fused"


def test_a_measured_forward_pass_is_used_where_it_can_be(monkeypatch):
    monkeypatch.setattr(plan, "measured", lambda: {"90": {"128": "stock"}})
    half = torch.bfloat16
    assert plan.forward_for(90, 96, half, AttentionSpec()) == "stock"
    assert plan.forward_for(90, 64, half, AttentionSpec()) == "fused"
    assert plan.forward_for(80, 96, half, AttentionSpec()) == "fused"
    assert plan.forward_for(90, 96, torch.float32, AttentionSpec()) == "fused"
    assert plan.forward_for(90, 96, half, AttentionSpec(window=9)) == "fused"


@pytest.mark.unchecked_signatures
@pytest.mark.parametrize(
    ("engine", "message"), [("cuda", "'cuda'; choose from"), ("triton", "GPU")]
)
def test_engines_that_cannot_run_here_are_refused(engine, message):
    q = torch.zeros(1, 1, 3, 8)
    error = refusal(attend, q, q, q, Request(stats=()), engine=engine)
    assert error.field == "engine"
    assert message in str(error)


def test_tokens_too_far_apart_are_refused():
    q = torch.zeros(1, 1, 2, 8)
    far = torch.empty_strided((1, 1, 2, 8), (0, 0, 1 << 24, 1), device="meta")
    check_refusal("k", Launch, q, far, q, AttentionSpec().fit(q, q))
