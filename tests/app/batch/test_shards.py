"""Parts of a prompt set, captured apart and put together, are the capture of all."""

from typing import Any

import pytest
import xarray as xr

from headscope.app.batch.shards import merge, slices, subset
from headscope.kernels import statistics
from headscope.probes import Pair, capture, load_model
from headscope.probes.capturing.options import applicable_stats
from headscope.probes.prompts import tasks
from headscope.probes.prompts.reading import read

LENGTHS = (9, 31, 4, 31, 17, 70, 2)


def agree(model: Any, prompts: Any, size: int, **options: Any) -> xr.Dataset:
    """Capture prompts whole and in parts: everything must be the same, numbers to rounding."""
    whole = capture(model, prompts, tile=16, **options)
    cuts = slices(len(prompts), size)
    assert len(cuts) > 1
    apart = [capture(model, subset(prompts, part), tile=16, **options) for part in cuts]
    merged = merge(apart, read(model, prompts))
    assert list(merged.variables) == list(whole.variables)
    assert merged.sizes == whole.sizes
    assert merged.attrs == whole.attrs
    for name in whole.variables:
        assert merged[name].dims == whole[name].dims
        assert merged[name].attrs == whole[name].attrs
    exact = [name for name in whole.variables if whole[name].dtype.kind != "f"]
    xr.testing.assert_identical(merged[exact], whole[exact])
    xr.testing.assert_allclose(merged, whole, rtol=1e-4, atol=1e-5)
    return merged


@pytest.mark.parametrize("size", [1, 3])
def test_every_statistic_of_prompts_of_different_lengths(bundled, size):
    prompts = [[5 + (7 * at + length) % 90 for at in range(length)] for length in LENGTHS]
    # Which keys come first is a matter of rounding where two are as large.
    stats = [name for name in statistics.names() if name not in ("topk_key", "span_mass")]
    options = {"stats": stats, "keep": ("q", "k", "v", "z", "resid"), "batch_tokens": 40}
    assert agree(bundled, prompts, size, **options).sizes["prompt"] == len(LENGTHS)


def test_a_task_with_its_roles(bundled):
    task = tasks.make("recall", bundled.tokenizer, n=5, seed=3, pairs=3)
    agree(bundled, task, 2, stats=("span_mass", "target_mass"))


@pytest.mark.parametrize("attention", ["cross", "decoder"])
def test_pairs_of_an_encoder_and_decoder(paired_folder, attention):
    model = load_model(paired_folder, attention=attention)
    pairs = [
        Pair(" ".join(f"w{at}" for at in range(source)), " ".join(f"w{at}" for at in range(target)))
        for source, target in ((4, 2), (9, 5), (3, 11), (9, 5))
    ]
    stats = applicable_stats(("entropy", "received", "pooled_mean", "distance_hist"), model)
    agree(model, pairs, 3, stats=stats, keep=("q", "k"))
