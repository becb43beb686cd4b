"""The analyses of the shape of attention on models whose layers are not all alike."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headscope import analyses
from headscope.analyses._runtime.runner import execute_many
from headscope.kernels.errors import HeadscopeError
from headscope.probes import Pair, capture, load_model

NAMES = ("entropy", "parallel_context", "span", "concentration", "blocks", "preplan_anchor",
         "depth_profile", "feature_maps")  # fmt: skip
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48,
             "block_multiple_of": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
                "sliding_window": 8, "rope_parameters": {"rope_type": "default"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_without_a_map_are_missing_and_the_others_are_not(kind):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers names the kernels that are not installed
        config = AutoConfig.for_model(kind, **SHAPE, **CONFIGS[kind])
        model = load_model(AutoModelForCausalLM.from_config(config).eval())
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
def test_bins_and_cross_attention_are_refused_by_name(name, bundled, paired_folder):
    module = analyses.load(name)
    options = {"stats": module.NEEDS, "keep": getattr(module, "KEEP", ())}
    model = load_model(paired_folder, attention="cross")
    crossed = capture(model, [Pair([3, 4, 5, 6], [0, 9, 8, 7])], stats=("entropy",))
    binned = capture(bundled, [list(range(2, 60))], stats=("entropy",), bins=8)
    needed = dict.fromkeys((*options["stats"], *options["keep"]), crossed["entropy"])
    supplied = (model,) if "model" in inspect.signature(module.run).parameters else ()
    with pytest.raises(HeadscopeError, match=r"cross attention of an encoder–decoder"):
        module.run(crossed.assign(needed), *supplied)
    with pytest.raises(HeadscopeError, match="bins of 8"):
        module.run(binned, *supplied)
