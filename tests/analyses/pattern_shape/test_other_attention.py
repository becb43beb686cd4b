"""The analyses of the shape of attention on models whose layers are not all alike."""

import inspect

import architectures
import numpy as np
import pytest
from refusals import check_message

from headscope import analyses
from headscope.analyses._runtime.runner import execute_many
from headscope.kernels.errors import HeadscopeError
from headscope.probes import Pair, capture, load_model

NAMES = ("entropy", "parallel_context", "span", "concentration", "blocks", "preplan_anchor",
         "depth_profile", "feature_maps")  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # transformers names the kernels that are not installed
@pytest.mark.parametrize("kind", ["lfm2", "gpt_oss"])
def test_layers_without_a_map_are_missing_and_the_others_are_not(kind):
    model = load_model(architectures.build(kind))
    draw = np.random.default_rng(0)
    prompts = [draw.integers(1, 64, size=size).tolist() for size in (40, 33)]
    without = np.isin(np.arange(2), model.geometry.without)
    assert without.any() == (kind == "lfm2")
    for name, result in execute_many(NAMES, model, prompts):
        assert not isinstance(result, HeadscopeError), f"{name}: {result}"
        for variable, array in result.items():
            if array.dims[:2] != ("layer", "head") or str(variable).endswith(("_lower", "_upper")):
                continue
            missing = array.isnull().all(set(array.dims) - {"layer"}).values
            np.testing.assert_array_equal(missing | without, missing, f"{name}.{variable}")
            # A layer with a window of 8 has no query that sees more than 8 keys.
            if variable != "concentration":
                assert not missing[~without].any(), f"{name}.{variable}"


@pytest.mark.parametrize("name", NAMES)
def test_cross_attention_is_refused_by_name(name, paired_folder):
    module = analyses.load(name)
    model = load_model(paired_folder, attention="cross")
    crossed = capture(model, [Pair([3, 4, 5, 6], [0, 9, 8, 7])], stats=("entropy",))
    needed = (*module.NEEDS, *getattr(module, "KEEP", ()))
    crossed = crossed.assign(dict.fromkeys(needed, crossed["entropy"]))
    supplied = (model,) if "model" in inspect.signature(module.run).parameters else ()
    check_message(r"cross attention of an encoder–decoder", module.run, crossed, *supplied)
