"""Measure every checkpoint on rows that no training step drew."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from headscope.probes.models.model_source import step_of, variants
from headscope_training.evaluation import Heads, head_scores, predict_next, without
from headscope_training.induction.rows import repeated, text

SEED = 9_041
ROWS = 64
PERIOD = 32
LENGTH = 64

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


def second_time(model: LlamaForCausalLM, again: Tensor) -> dict[str, float]:
    """Loss and top-1 accuracy where random words come again; their first word is a surprise."""
    loss, right = predict_next(model, again)
    return {
        "loss": round(float(loss[:, PERIOD + 1 :].mean()), 4),
        "accuracy": round(float(right[:, PERIOD + 1 :].float().mean()), 4),
    }


def measure(model: LlamaForCausalLM) -> dict[str, Any]:
    """Measure one checkpoint: losses in nats a word, accuracies and weights 0 to 1."""
    rows, again = held_out()
    scores = head_scores(model, again)
    return {
        "text": round(float(predict_next(model, rows)[0][:, 1:].mean()), 4),
        "first_time": round(float(predict_next(model, again)[0][:, 1:PERIOD].mean()), 4),
        "second_time": second_time(model, again),
        "without": {
            name: second_time(without(model, heads), again) for name, heads in ROLES.items()
        },
        "heads": {
            kind: [[round(float(score), 4) for score in layer] for layer in scores[kind]]
            for kind in ("previous", "induction", "first")
        },
    }


def table_row(step: str, numbers: dict[str, Any]) -> str:
    """The row of the README's table for one step."""
    scores = {
        kind: sorted((score for row in rows for score in row), reverse=True)
        for kind, rows in numbers["heads"].items()
    }
    second = numbers["second_time"]
    parts = [
        f"{numbers['text']:.2f}",
        f"{second['loss']:.2f}",
        f"{100 * second['accuracy']:.1f} %",
        f"{scores['previous'][0]:.2f}",
        ", ".join(f"{score:.2f}" for score in scores["induction"][:4]),
        f"{scores['first'][0]:.2f}",
        *(f"{100 * ablated['accuracy']:.1f} %" for ablated in numbers["without"].values()),
    ]
    return f"| {step} | {' | '.join(parts)} |"


def card(source: Path) -> str:
    """Measure every checkpoint of a folder; JSON, a step a line."""
    lines = [
        f'"{step_of(variant)}": {json.dumps(measure(load(source, variant)))}'
        for variant in variants(source)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
