"""Models that accelerate has spread or offloaded: the same numbers, at home on the CPU."""

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
import xarray as xr
from refusals import check_refusal, refusal

from headscope.probes import capture, load_model, plan
from headscope.probes.interventions import Ablate
from headscope.probes.models.devices import weights

STATS = ("entropy", "received", "topk", "target_mass")


def offloaded(module: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(module, execution_device=torch.device("cpu"))


def on_disk(module: Any, folder: Path) -> Any:
    return accelerate.disk_offload(module, str(folder), execution_device=torch.device("cpu"))


def split(module: Any, folder: Path) -> Any:
    """Keep all on the CPU but the second block, which goes to disk."""
    blocks = module.model.layers if hasattr(module, "model") else module.transformer.h
    names = {id(part): name for name, part in module.named_modules()}
    second = names[id(blocks[1])]
    places = {
        name: "disk" if name.startswith(second) else "cpu"
        for name, part in module.named_modules()
        if not list(part.children())
    }
    options = {"main_device": "cpu", "offload_dir": str(folder), "force_hooks": True}
    return accelerate.dispatch_model(module, places, **options)


@pytest.mark.parametrize("way", [offloaded, on_disk, split])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_numbers_are_those_of_the_whole_model(family, way, tiny, ids, tmp_path):
    module = tiny(family)
    plain = load_model(module)
    spread = load_model(way(copy.deepcopy(module), tmp_path))
    assert any(parameter.is_meta for parameter in spread.module.parameters())
    assert spread.device == torch.device("cpu")
    assert spread.revision == plain.revision
    given = [ids(20), ids(19, seed=1)]
    for options in ({"keep": ("q", "resid")}, {"edits": (Ablate(heads=((1, 0),)),)}):
        result = capture(spread, given, STATS, **options)
        xr.testing.assert_allclose(result, capture(plain, given, STATS, **options), atol=1e-6)
        assert any(parameter.is_meta for parameter in spread.module.parameters()), (
            "nothing stays loaded"
        )
    assert plan(spread, given).weights >= sum(
        parameter.nbytes for _, parameter in weights(plain.module)
    )


def test_tied_weights_count_once(tiny, tmp_path):
    module = tiny("gpt2")
    assert module.lm_head.weight is module.transformer.wte.weight
    whole = {name: one.clone() for name, one in weights(module)}
    for way in (offloaded, on_disk):
        result = dict(weights(way(copy.deepcopy(module), tmp_path / way.__name__)))
        assert result.keys() == whole.keys()
        assert all(torch.equal(result[name], one) for name, one in whole.items())


def test_a_folder_is_spread_over_what_there_is(folder, ids, monkeypatch):
    plain = load_model(folder)
    asked: list[Any] = []
    real = transformers.LlamaForCausalLM.from_pretrained.__func__

    def noted(kind: Any, *given: Any, **options: Any) -> Any:
        asked.append(options["device_map"])
        return real(kind, *given, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", classmethod(noted))
    spread = load_model(folder, device="auto")
    assert asked == ["auto"]
    assert spread.revision == plain.revision
    xr.testing.assert_allclose(capture(spread, [ids(9)]), capture(plain, [ids(9)]))


def test_a_model_without_values_is_refused(tiny):
    assert "has no values" in str(refusal(load_model, tiny("llama").to("meta")))
    check_refusal("device", load_model, tiny("llama"), device="auto")
