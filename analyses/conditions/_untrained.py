"""An untrained model: an architecture with the weights that its initialiser draws."""

import copy
from typing import Any

import torch

from headscope.probes.models.loading import load_model
from headscope.probes.models.model import Model


def untrained_model(model: Model, seed: int) -> Model:
    """Return a model of the same architecture, tokenizer, device and dtype with random weights.

    What is found in it too was not learnt. It takes as much memory as the model itself; the state
    of torch's generator is as before afterwards.
    """
    kind: Any = type(model.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind(copy.deepcopy(model.module.config))
    module.eval().to(device=model.device, dtype=model.dtype)
    return load_model(module, tokenizer=model.tokenizer)
