"""Inputs that do not fit are refused in one line that names the field and the fix."""

import pickle
from typing import Any

import pytest
import torch
from refusals import refusal

from headscope.kernels import statistics
from headscope.kernels.api import AttentionSpec, Request, attend, attend_dense
from headscope.kernels.errors import HeadscopeError, InvalidInput, ResourceLimit

REQUEST = Request(stats=("entropy",))


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


GOOD = ((2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8))
MIXED = (*tensors(*GOOD[:2]), *tensors(GOOD[2], dtype=torch.float16))
PADDED = torch.tensor([[True] * 4 + [False] * 2] * 2)

ATTENTION: dict[str, tuple[Any, dict[str, Any], str]] = {
    "three dims": (tensors((2, 4, 6), *GOOD[1:]), {}, "q"),
    "no keys": (tensors(GOOD[0], (2, 2, 0, 8), (2, 2, 0, 8)), {}, "k"),
    "whole numbers": (tensors(*GOOD, dtype=torch.int64), {}, "q"),
    "mixed types": (MIXED, {}, "v"),
    "another batch": (tensors(GOOD[0], (1, 2, 6, 8), (1, 2, 6, 8)), {}, "q, k, v"),
    "another head size": (tensors(GOOD[0], (2, 2, 6, 4), GOOD[2]), {}, "k"),
    "other values": (tensors(*GOOD[:2], (2, 2, 5, 8)), {}, "v"),
    "3 KV heads for 4": (tensors(GOOD[0], (2, 3, 6, 8), (2, 3, 6, 8)), {}, "k"),
    "window of 0": (tensors(*GOOD), {"window": 0}, "window"),
    "negative soft cap": (tensors(*GOOD), {"softcap": -1.0}, "softcap"),
    "infinite scale": (tensors(*GOOD), {"scale": float("inf")}, "scale"),
    "short mask": (tensors(*GOOD), {"key_mask": PADDED[:, :5]}, "key_mask"),
    "number mask": (tensors(*GOOD), {"key_mask": PADDED.float()}, "key_mask"),
    "query mask": (tensors(*GOOD), {"query_mask": PADDED[:1]}, "query_mask"),
    "whose padding": (tensors(*GOOD), {"key_mask": PADDED, "causal": False}, "query_mask"),
}


@pytest.mark.unchecked_signatures
@pytest.mark.parametrize("engine", [attend, attend_dense])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_refuses(case, engine):
    qkv, options, field = ATTENTION[case]
    error = refusal(lambda: engine(*qkv, REQUEST, AttentionSpec(**options)))
    assert (type(error), error.field) == (InvalidInput, field)
    assert error.fix or "cast" in str(error)


TARGETS = torch.zeros(2, 1, 6, 1, dtype=torch.long)
SPANS = torch.zeros(2, 6, dtype=torch.long)
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"stats": ("entropi",)}, "stats"),
    "one string": ({"stats": "entropy"}, "stats"),
    "no first key": ({"stats": (), "first": 0}, "first"),
    "no tile": ({"stats": (), "tile": 0}, "tile"),
    "clip of 0": ({"stats": (), "clip": 0}, "clip"),
    "offset twice": ({"stats": (), "offsets": (1, 1)}, "offsets"),
    "no offset": ({"stats": ("offset_mass",), "offsets": ()}, "offsets"),
    "no targets": ({"stats": ("target_mass",)}, "targets"),
    "flat targets": ({"stats": (), "targets": TARGETS[0]}, "targets"),
    "targets below": ({"stats": (), "targets": TARGETS - 2}, "targets"),
    "key twice": ({"stats": (), "targets": TARGETS.expand(2, 1, 6, 2)}, "targets"),
    "targets above": ({"stats": ("target_mass",), "targets": TARGETS + 6}, "targets"),
    "no recent key": ({"stats": (), "recent": 0}, "recent"),
    "all of the mass": ({"stats": (), "share": 1.0}, "share"),
    "no top key": ({"stats": (), "k": 0}, "k"),
    "no spans": ({"stats": ("span_mass",)}, "spans"),
    "flat spans": ({"stats": (), "spans": SPANS[0]}, "spans"),
    "spans as masks": ({"stats": (), "spans": SPANS > 0}, "spans"),
    "spans below": ({"stats": (), "spans": SPANS - 2}, "spans"),
    "few spans": ({"stats": ("span_mass",), "spans": SPANS[:1]}, "spans"),
    "horizon backwards": ({"stats": (), "horizon": (9, 3)}, "horizon"),
    "no last query": ({"stats": (), "last": 0}, "last"),
    "few targets": ({"stats": ("target_mass",), "targets": TARGETS[:1]}, "targets"),
}


@pytest.mark.unchecked_signatures
@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_is_refused(case):
    fields, field = REQUESTS[case]
    error = refusal(lambda: attend(*tensors(*GOOD), Request(**fields)))
    assert (type(error), error.field) == (InvalidInput, field)


def test_the_pattern_of_a_long_text_is_refused():
    q, k = tensors((1, 1, 4, 2), (1, 1, 2049, 2))
    with pytest.raises(ResourceLimit, match=r"pattern of 4 × 2049.*up to 2048"):
        attend(q, k, k, Request(stats=("pattern",)))
    shorter = k[:, :, 1:]
    assert attend(q, shorter, shorter, Request(stats=("pattern",)))["pattern"].shape[-1] == 2048


def test_a_file_must_be_named_like_its_statistic(tmp_path, monkeypatch):
    entropy = statistics.load("entropy")
    text = "from headscope.kernels.statistics.entropy import STATISTIC\n"
    (tmp_path / "misnamed.py").write_text(text)
    monkeypatch.setattr(statistics, "__path__", [*statistics.__path__, str(tmp_path)])
    with pytest.raises(InvalidInput, match=f"misnamed.py declares '{entropy.name}'"):
        statistics.load("misnamed")


def test_a_refusal_is_a_value_error_with_field_and_fix():
    with pytest.raises(ValueError, match="tile") as caught:
        Request(stats=(), tile=-1)
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is InvalidInput
    assert (error.field, error.fix) == ("tile", "give 1 or more")
    assert str(error) == "tile: -1 tokens a tile; give 1 or more"
    assert HeadscopeError("no colon", field="a", fix="b").field == "a"
    assert HeadscopeError("no colon").fix == ""
