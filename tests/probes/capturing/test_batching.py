"""Prompts of different lengths in one forward pass: the numbers of each alone."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from headscope.kernels import statistics
from headscope.probes import capture, load_model
from headscope.probes.capturing.recorder import takes_padding
from headscope.probes.interventions import Ablate
from headscope.probes.models.model import Model
from headscope.probes.prompts.prompt_batch import batches

LENGTHS = (30, 31, 29, 12, 13)
# Where a choice hangs on the last bit of a weight, another key is as good.
CHOICES = ("topk_key", "effective_span", "span_without_first")


def options(given: list[list[int]]) -> dict[str, Any]:
    spans = {"start": [[0, 1]] * len(given), "end": [[len(one) - 1] for one in given[:-1]] + [[]]}
    return {
        "stats": tuple(name for name in statistics.names() if name != "z"),
        "keep": ("q", "k", "v", "z", "resid"),
        "spans": spans, "tile": 4, "k": 5, "offsets": (0, 1, 3), "recent": 6, "last": 4,
        "horizon": (2, 9), "first": 2,
    }  # fmt: skip


def alone(model: Model, given: list[list[int]], row: int) -> xr.Dataset:
    expected = options(given)
    spans = {name: [one[row]] for name, one in expected["spans"].items()}
    return capture(model, [given[row]], **{**expected, "spans": spans})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_every_number_is_that_of_the_prompt_alone(family, tiny, ids):
    model = load_model(tiny(family))
    given = [ids(length, seed=length) for length in LENGTHS]
    together = capture(model, given, **options(given))
    assert together.attrs["padding"] == "right"
    compared = 0
    for row in range(len(given)):
        single = alone(model, given, row).isel(prompt=0)
        for name, expected in single.data_vars.items():
            result = together[name].isel(prompt=row)
            inner = result.isel({dim: slice(0, size) for dim, size in expected.sizes.items()})
            # What lies beyond the prompt is missing, not 0.
            assert int(result.notnull().sum()) == int(inner.notnull().sum()), name
            if name in CHOICES:
                same = (inner == expected) | (inner.isnull() & expected.isnull())
                assert float(same.mean()) > 0.99, name
            else:
                allowed = 5e-5 * max(1.0, float(np.nan_to_num(np.abs(expected)).max()))
                np.testing.assert_allclose(inner, expected, rtol=0, atol=allowed, err_msg=name)
            compared += 1
    assert compared == len(given) * len(single.data_vars)


def test_batches_hold_at_most_a_tenth_of_padding():
    draw = np.random.default_rng(0)
    given = [[0] * int(length) for length in draw.integers(20, 201, 200)]
    result = list(batches(given, 1500, waste=0.1))
    assert sorted(row for rows in result for row in rows) == list(range(200))
    for rows in result:
        lengths = [len(given[row]) for row in rows]
        full = len(rows) * max(lengths)
        assert full <= 1500
        assert full - sum(lengths) <= 0.1 * full
    assert len(result) < len(list(batches(given, 1500))) / 2


def test_a_model_whose_numbers_change_is_not_padded(tiny, ids, monkeypatch):
    module = tiny("llama")
    model = load_model(module)
    embed = type(module.model.embed_tokens).forward

    def leaking(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        # Like a norm over the batch: what is padding reaches what is not.
        hidden = embed(self, tokens)
        return hidden + hidden.mean(dim=(0, 1))

    monkeypatch.setattr(type(module.model.embed_tokens), "forward", leaking)
    assert not takes_padding(model)
    given = [ids(30), ids(29, seed=1)]
    result = capture(model, given)
    assert result.attrs["padding"] == "none"
    single = capture(model, given[1:])
    alike = result["entropy"].isel(prompt=1, query=slice(29))
    np.testing.assert_array_equal(alike, single["entropy"].isel(prompt=0))


def test_edits_are_not_padded(tiny, ids):
    given = [ids(30), ids(29, seed=1)]
    edited = capture(load_model(tiny("llama")), given, edits=(Ablate(heads=((0, 0),)),))
    assert edited.attrs["padding"] == "none"
