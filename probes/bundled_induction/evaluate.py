"""Measure every checkpoint on rows that no training step drew; the card's numbers as JSON.

Run by hand: ``python -P -m headscope.probes.bundled_induction.evaluate [FOLDER] [--out FILE]``. The
forward pass and the attention maps are transformers' own, so the numbers do not depend on
headscope's capture.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from headscope.probes.bundled_induction import folder
from headscope.probes.bundled_induction.corpus import repeated, text
from headscope.probes.models.model_source import step_of, variants

SEED = 9_041
ROWS = 64
PERIOD = 32
LENGTH = 64

Heads = Sequence[tuple[int, int]]

# What heads have become by the last step.
ROLES: dict[str, Heads] = {
    "previous": ((0, 0),),
    "induction": ((1, 1), (1, 2), (1, 3)),
    "others": ((0, 1), (0, 2), (0, 3), (1, 0)),
}


def load(source: Path, step: str) -> LlamaForCausalLM:
    """Load one checkpoint with transformers alone."""
    model: Any = LlamaForCausalLM.from_pretrained(
        source, variant=step, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()  # type: ignore[no-any-return]


def held_out() -> tuple[Tensor, Tensor]:
    """Rows of text, and of random words said twice, ``<bos>`` first (row, 65)."""
    generator = torch.Generator().manual_seed(SEED)
    rows = text(ROWS, LENGTH, generator)
    again = torch.stack([repeated(PERIOD, LENGTH, generator) for _ in range(ROWS)])
    return functional.pad(rows, (1, 0)), functional.pad(again, (1, 0))


@torch.inference_mode()
def predicted(model: LlamaForCausalLM, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and correctness of every next token (row, position)."""
    logits = model(rows[:, :-1]).logits
    loss = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    return loss, logits.argmax(-1) == rows[:, 1:]


@torch.inference_mode()
def kinds(model: LlamaForCausalLM, rows: Tensor) -> dict[str, Tensor]:
    """Mean weight on what each kind of head looks at, (layer, head), on words said twice."""
    maps = torch.stack(model(rows, output_attentions=True).attentions)
    second, every = torch.arange(PERIOD + 1, LENGTH + 1), torch.arange(1, LENGTH + 1)

    def mean(queries: Tensor, keys: Tensor) -> Tensor:
        return maps[:, :, :, queries, keys].mean((1, 3))

    return {
        "previous": mean(every, every - 1),
        "induction": mean(second, second - PERIOD + 1),
        "first": mean(every, torch.zeros_like(every)),
    }


def without(model: LlamaForCausalLM, heads: Heads) -> LlamaForCausalLM:
    """A copy with the columns of the output projection that read some heads set to zero."""
    model = copy.deepcopy(model)
    size = model.model.layers[0].self_attn.head_dim
    with torch.no_grad():
        for layer, head in heads:
            projection = model.model.layers[layer].self_attn.o_proj.weight
            projection[:, size * head : size * (head + 1)] = 0
    return model


def second_time(model: LlamaForCausalLM, again: Tensor) -> dict[str, float]:
    """Loss and top-1 accuracy where random words come again; their first word is a surprise."""
    loss, right = predicted(model, again)
    return {
        "loss": round(float(loss[:, PERIOD + 1 :].mean()), 4),
        "accuracy": round(float(right[:, PERIOD + 1 :].float().mean()), 4),
    }


def measure(model: LlamaForCausalLM) -> dict[str, Any]:
    """Every number of one checkpoint: losses in nats a word, accuracies and weights 0 to 1."""
    rows, again = held_out()
    return {
        "text": round(float(predicted(model, rows)[0][:, 1:].mean()), 4),
        "first_time": round(float(predicted(model, again)[0][:, 1:PERIOD].mean()), 4),
        "second_time": second_time(model, again),
        "without": {
            name: second_time(without(model, heads), again) for name, heads in ROLES.items()
        },
        "heads": {
            name: [[round(float(one), 4) for one in row] for row in scores]
            for name, scores in kinds(model, again).items()
        },
    }


def line(step: str, found: dict[str, Any]) -> str:
    """Return the line of the card's table for one step."""
    previous = max(one for row in found["heads"]["previous"] for one in row)
    copying = sorted((one for row in found["heads"]["induction"] for one in row), reverse=True)
    there = found["second_time"]
    parts = [
        f"{found['text']:.2f}",
        f"{there['loss']:.2f}",
        f"{100 * there['accuracy']:.1f} %",
        f"{previous:.2f}",
        ", ".join(f"{one:.2f}" for one in copying[:4]),
        f"{max(one for row in found['heads']['first'] for one in row):.2f}",
        *(f"{100 * one['accuracy']:.1f} %" for one in found["without"].values()),
    ]
    return f"| {step} | {' | '.join(parts)} |"


def main() -> None:
    """Read the command line and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=folder(), help="model folder")
    parser.add_argument("--out", type=Path, help="file to write; printed if not given")
    options = parser.parse_args()
    found = {
        str(step_of(step)): measure(load(options.source, step)) for step in variants(options.source)
    }
    lines = [f'"{step}": {json.dumps(numbers)}' for step, numbers in found.items()]
    written = "{\n" + ",\n".join(lines) + "\n}\n"
    if options.out:
        options.out.write_text(written)
    else:
        print(written, end="")


if __name__ == "__main__":
    main()
