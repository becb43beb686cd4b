"""Statistics in bins: what binning every token's number gives, and what is refused."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from refusals import check_message

from headscope import analyses
from headscope.analyses._runtime import inputs
from headscope.kernels import statistics
from headscope.probes import capture, load_model, plan
from headscope.probes.models.model import Model
from headscope.probes.prompts import tasks

STATS = tuple(sorted(set(statistics.names()) - {"z", "pattern", "topk", "topk_key"}))
OPTIONS: dict[str, Any] = {
    "stats": STATS, "tile": 4, "offsets": (0, 1, 5), "spans": {"a": [[0, 1], [2]]},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny: Any) -> Model:
    return load_model(tiny("llama"))


def binned(native: xr.DataArray, dim: str, width: int, name: str) -> np.ndarray[Any, Any]:
    """Bin by xarray's own groups, in float64."""
    groups = xr.DataArray(np.arange(native.sizes[dim]) // width, dims=dim, name="part")
    grouped = native.astype(float).groupby(groups)
    result = grouped.max(skipna=True) if name == "received_max" else grouped.mean(skipna=True)
    return result.rename(part=dim).transpose(*native.dims).values


def test_bins_are_bins_of_the_native_numbers(model, ids):
    given = [ids(41), ids(23, seed=1)]
    native = capture(model, given, **OPTIONS)
    result = capture(model, given, bins=10, **OPTIONS)
    assert result.attrs["bin_width"] == 5
    assert result.sizes["query"] == result.sizes["key"] == 9
    assert result["query"].values.tolist() == list(range(0, 41, 5))
    assert result["token_id"].dims == ("prompt", "position")
    assert np.array_equal(result["token_id"].values, native["token_id"].values)
    for name in STATS:
        dims = [dim for dim in ("query", "key") if dim in native[name].dims]
        expected = native[name].values if not dims else binned(native[name], dims[0], 5, name)
        np.testing.assert_allclose(
            result[name].values, expected, rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_memory_follows_the_bins(model, ids):
    stats = ("entropy", "received")
    few = plan(model, [ids(120)], stats, bins=10)
    assert plan(model, [ids(60)], stats, bins=10).statistics == few.statistics
    assert plan(model, [ids(120)], stats).statistics == 12 * few.statistics
    result = capture(model, [ids(120)], stats, bins=10)
    assert result["entropy"].nbytes + result["received"].nbytes == few.statistics


def test_short_texts_keep_every_token(model, ids):
    stats = ("entropy", "received")
    result = capture(model, [ids(20)], stats, bins=20)
    xr.testing.assert_equal(result, capture(model, [ids(20)], stats))


def test_a_file_holds_the_same(model, ids, tmp_path):
    given = [ids(41), ids(23, seed=1)]
    memory = capture(model, given, bins=10, **OPTIONS)
    file = capture(model, given, bins=10, out=tmp_path / "a.safetensors", **OPTIONS)
    xr.testing.assert_equal(file, memory)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"bins": 0}, "bins: 0"),
        ({"stats": ("topk_key",)}, "bins: topk_key"),
        ({"stats": ("pattern",)}, "bins: pattern"),
        ({"keep": ("z",)}, "bins: z keep"),
    ],
)
def test_what_has_no_bins_is_refused(model, ids, more, message):
    check_message(message, capture, model, [ids(20)], **{"bins": 4, **more})


@pytest.mark.parametrize(
    "name",
    # Retrieval reads its rows itself, pass by pass.
    [
        name
        for name in analyses.names()
        if "capture" in inputs.positionals(name) and name != "retrieval"
    ],
)
def test_analyses_refuse_bins_in_one_line(name, bundled):
    module = analyses.load(name)
    task = tasks.make(getattr(module, "TASK", None) or "story", tokenizer=bundled.tokenizer, n=2)
    stats = tuple(one for one in module.NEEDS if one not in ("pattern", "topk", "topk_key"))
    binned = capture(bundled, task, stats=stats or ("entropy",), bins=3)
    supplied = {"capture": binned, "model": bundled, "prompts": task, "task": task, "sae": None}
    check_message("bins", module.run, *(supplied[one] for one in inputs.positionals(name)))
