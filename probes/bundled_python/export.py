"""Write a checkpoint as the files that ship: weights in float16, config, tokenizer.

Run by hand: ``python -P -m headscope.probes.bundled_python.export CHECKPOINT FOLDER``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from headscope.probes.bundled_python.train import config, resume

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def export(checkpoint: Path, out: Path) -> None:
    """Write ``model.safetensors``, ``config.json`` and the tokenizer.

    The weights are stored in float16 to halve the file; the config names float32, so that is what
    `from_pretrained` computes in.

    Parameters
    ----------
    checkpoint
        Folder that training wrote.
    out
        Existing folder.
    """
    model = GPT2LMHeadModel(config())
    resume(model, (), checkpoint)
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    partial = out / "model.safetensors.part"
    save_file(weights, partial, {"format": "pt"})
    partial.chmod(0o644)
    partial.replace(out / "model.safetensors")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    for name in TOKENIZER:
        shutil.copyfile(checkpoint / name, out / name)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder that training wrote")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    export(options.checkpoint, options.out)


if __name__ == "__main__":
    main()
