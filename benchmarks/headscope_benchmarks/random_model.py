"""A run of a Llama with random weights, of as many layers and heads as are asked for."""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from headscope.app.pipeline import analyze_run, capture_run
from headscope.probes import load_model
from headscope.probes.storage.run_folder import Run


def random_run(
    folder: Path, shape: tuple[int, int], analyses: Sequence[str], number: int = 1
) -> Run:
    """Capture such a model of a shape (layers, heads) on stories, and analyse it."""
    bundled = load_model("headscope/bundled")
    layers, heads = shape
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=bundled.vocabulary, hidden_size=2 * heads, intermediate_size=16,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    bundled.tokenizer.save_pretrained(folder / "model")
    run = capture_run(folder / "run", str(folder / "model"), task="story", number=number)
    analyze_run(run, analyses, number=number)
    return run
