"""A model without training: the same architecture with the weights that its initialiser draws."""

import copy
from typing import Any

import torch

from headscope.kernels.errors import NotApplicable
from headscope.probes.models.loading import load_model
from headscope.probes.models.model import Model


def untrained(model: Model, seed: int, option: str) -> Model:
    """Return a model of the same config, tokenizer, device and dtype with random weights.

    What is found in it too was not learnt. It takes as much memory as the model itself; the state
    of torch's generator is as before afterwards. Where the class cannot make a model from its
    config alone, the refusal names the ``option`` to switch off.
    """
    kind: Any = type(model.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = kind(copy.deepcopy(model.module.config)).eval()
        except (TypeError, ValueError) as error:
            raise NotApplicable(
                f"{option}: {model.architecture} is not made from its config alone "
                f"({str(error).splitlines()[0]}); give {option}=false"
            ) from error
    placed = module.to(model.device, model.dtype)
    return load_model(placed, tokenizer=model.tokenizer, bos=model.bos)
