"""Checkpoints of training, and the files that ship."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from headscope_training.recipe import Recipe

CHECKPOINT = "checkpoint.pt"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

Optimizers = Sequence[torch.optim.Optimizer]


def save(model: PreTrainedModel, optimizers: Optimizers, step: int, out: Path) -> None:
    """Write step, weights and moments to one file that is never half written."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial = out / "checkpoint.part"
    torch.save(state, partial)
    partial.replace(out / CHECKPOINT)


def resume(model: PreTrainedModel, optimizers: Optimizers, source: Path) -> int:
    """Load a checkpoint, with the moments of the optimizers given; returns its step."""
    state = torch.load(source / CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, moments in zip(optimizers, state["optimizers"], strict=False):
        optimizer.load_state_dict(moments)
    return int(state["step"])


def write_weights(model: PreTrainedModel, file: Path) -> None:
    """Write weights in float16 to halve the file, without the head tied to the embedding."""
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = file.with_suffix(".part")
    save_file(weights, partial, {"format": "pt"})
    partial.chmod(0o644)
    partial.replace(file)


def snapshot_file(folder: Path, step: int) -> Path:
    """The file of the weights of one step, as ``save_pretrained(variant="stepN")`` names it."""
    return folder / f"model.step{step}.safetensors"


def export(recipe: Recipe, checkpoint: Path, out: Path) -> None:
    """Write weights, ``config.json`` and the tokenizer.

    The config names float32, so that is what `from_pretrained` computes in.

    Parameters
    ----------
    recipe
        What was trained.
    checkpoint
        Folder that training wrote.
    out
        Folder to write.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = recipe.build()
    if recipe.snapshots:
        for step in recipe.snapshots:
            shutil.copyfile(snapshot_file(checkpoint, step), snapshot_file(out, step))
    else:
        resume(model, (), checkpoint)
        write_weights(model, out / "model.safetensors")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    for name in TOKENIZER:
        shutil.copyfile(checkpoint / name, out / name)
