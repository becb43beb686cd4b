"""Inputs that do not fit are refused in one line that names the field and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from headscope.kernels import statistics
from headscope.kernels.attention import attend
from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.dense import attend_dense
from headscope.kernels.errors import HeadscopeError
from headscope.kernels.request import Request

REQUEST = Request(stats=("entropy",))


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


GOOD = ((2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8))
MIXED = (*tensors(*GOOD[:2]), *tensors(GOOD[2], dtype=torch.float16))
PADDED = torch.tensor([[True] * 4 + [False] * 2] * 2)

ATTENTION: dict[str, tuple[Any, dict[str, Any], str]] = {
    "three dims": (tensors((2, 4, 6), *GOOD[1:]), {}, "q: .*4 dims"),
    "no keys": (tensors(GOOD[0], (2, 2, 0, 8), (2, 2, 0, 8)), {}, "k: empty.*at least one token"),
    "whole numbers": (tensors(*GOOD, dtype=torch.int64), {}, "q: torch.int64; cast"),
    "mixed types": (MIXED, {}, "v: torch.float16.*same type"),
    "another batch": (tensors(GOOD[0], (1, 2, 6, 8), (1, 2, 6, 8)), {}, "q, k, v: batches"),
    "another head size": (tensors(GOOD[0], (2, 2, 6, 4), GOOD[2]), {}, "k: head size 4"),
    "other values": (tensors(*GOOD[:2], (2, 2, 5, 8)), {}, "v: 2 heads, 5 keys"),
    "3 KV heads for 4": (tensors(GOOD[0], (2, 3, 6, 8), (2, 3, 6, 8)), {}, "k: 3 KV heads"),
    "window of 0": (tensors(*GOOD), {"window": 0}, "window: 0"),
    "negative soft cap": (tensors(*GOOD), {"softcap": -1.0}, "softcap: -1.0"),
    "infinite scale": (tensors(*GOOD), {"scale": float("inf")}, "scale: inf"),
    "short mask": (tensors(*GOOD), {"key_mask": PADDED[:, :5]}, r"key_mask: .*\(2, 6\)"),
    "number mask": (tensors(*GOOD), {"key_mask": PADDED.float()}, "key_mask: torch.float32"),
    "query mask": (tensors(*GOOD), {"query_mask": PADDED[:1]}, r"query_mask: .*\(2, 6\)"),
    "whose padding": (tensors(*GOOD), {"key_mask": PADDED, "causal": False}, "query_mask: needed"),
}


@pytest.mark.parametrize("engine", [attend, attend_dense])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_refuses(case: str, engine: Callable[..., Any]) -> None:
    qkv, options, message = ATTENTION[case]
    with pytest.raises(HeadscopeError, match=message) as refusal:
        engine(*qkv, REQUEST, AttentionSpec(**options))
    assert "\n" not in str(refusal.value)


TARGETS = torch.zeros(2, 1, 6, 1, dtype=torch.long)
SPANS = torch.zeros(2, 6, dtype=torch.long)
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"stats": ("entropi",)}, "stats: no statistic 'entropi'; choose from .*entropy"),
    "one string": ({"stats": "entropy"}, "stats: .*tuple"),
    "no first key": ({"stats": (), "first": 0}, "first: 0"),
    "no tile": ({"stats": (), "tile": 0}, "tile: 0"),
    "clip of 0": ({"stats": (), "clip": 0}, "clip: .* 0 "),
    "offset twice": ({"stats": (), "offsets": (1, 1)}, "offsets: .*twice"),
    "no offset": ({"stats": ("offset_mass",), "offsets": ()}, "offsets: .*at least one"),
    "no targets": ({"stats": ("target_mass",)}, "targets: target_mass needs"),
    "flat targets": ({"stats": (), "targets": TARGETS[0]}, "targets: give an integer tensor"),
    "targets below": ({"stats": (), "targets": TARGETS - 2}, "targets: key -2"),
    "key twice": ({"stats": (), "targets": TARGETS.expand(2, 1, 6, 2)}, "targets: .*twice"),
    "targets above": ({"stats": ("target_mass",), "targets": TARGETS + 6}, "targets: key 6"),
    "no recent key": ({"stats": (), "recent": 0}, "recent: 0"),
    "all of the mass": ({"stats": (), "share": 1.0}, "share: 1.0 .*between 0 and 1"),
    "no top key": ({"stats": (), "k": 0}, "k: 0 top keys"),
    "no spans": ({"stats": ("span_mass",)}, "spans: span_mass needs"),
    "flat spans": ({"stats": (), "spans": SPANS[0]}, "spans: give an integer tensor"),
    "spans as masks": ({"stats": (), "spans": SPANS > 0}, "spans: give an integer tensor"),
    "spans below": ({"stats": (), "spans": SPANS - 2}, "spans: span -2"),
    "few spans": ({"stats": ("span_mass",), "spans": SPANS[:1]}, r"spans: shape \(1, 6\); give"),
    "horizon backwards": ({"stats": (), "horizon": (9, 3)}, r"horizon: \(9, 3\)"),
    "no last query": ({"stats": (), "last": 0}, "last: 0"),
    "few targets": ({"stats": ("target_mass",), "targets": TARGETS[:1]}, "targets: shape"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_is_refused(case: str) -> None:
    fields, message = REQUESTS[case]
    with pytest.raises(HeadscopeError, match=message) as refusal:
        attend(*tensors(*GOOD), Request(**fields))
    assert "\n" not in str(refusal.value)


def test_the_pattern_of_a_long_text_is_refused() -> None:
    q, k = tensors((1, 1, 4, 2), (1, 1, 2049, 2))
    with pytest.raises(HeadscopeError, match=r"pattern of 4 × 2049.*up to 2048"):
        attend(q, k, k, Request(stats=("pattern",)))
    shorter = k[:, :, 1:]
    assert attend(q, shorter, shorter, Request(stats=("pattern",)))["pattern"].shape[-1] == 2048


def test_a_file_must_be_named_like_its_statistic(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entropy = statistics.load("entropy")
    (tmp_path / "misnamed.py").write_text(
        "from headscope.kernels.statistics.entropy import STATISTIC\n"
    )
    monkeypatch.setattr(statistics, "__path__", [*statistics.__path__, str(tmp_path)])
    with pytest.raises(HeadscopeError, match=f"misnamed.py declares '{entropy.name}'"):
        statistics.load("misnamed")


def test_a_refusal_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="tile"):
        Request(stats=(), tile=-1)
