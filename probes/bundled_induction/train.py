"""Train the series of checkpoints, one file a step, all of them in one folder.

Run by hand: ``python -P -m headscope.probes.bundled_induction.train FOLDER`` (a few minutes on one
CPU core). Everything is seeded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.probes.bundled.corpus import vocabulary
from headscope.probes.bundled.tokenizer import write_tokenizer
from headscope.probes.bundled_induction.corpus import SEED, draw

# Of the attention and of everything else.
RATES = (3e-4, 2e-3)
WARM = 50
STEPS = (0, 50, 100, 200, 300, 350, 375, 400, 425, 450, 500, 600, 800, 1000)


def config() -> LlamaConfig:
    """Shape of the model: Llama, 2 layers of 4 heads, width 64."""
    return LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=64,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=1,
        dtype="float32",
    )


def parts(model: LlamaForCausalLM) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Weights of the attention, and all others."""
    attention = [one for name, one in model.named_parameters() if "self_attn" in name]
    taken = {id(one) for one in attention}
    return attention, [one for one in model.parameters() if id(one) not in taken]


def level(weight: torch.nn.Parameter) -> None:
    """Scale a gradient to a mean square of 1.

    Adam would step every entry alike, so all heads of a layer would grow alike and come out the
    same; with one scale a matrix, a head that is ahead stays ahead.
    """
    assert weight.grad is not None
    weight.grad /= weight.grad.square().mean().sqrt() + 1e-12


def save(model: LlamaForCausalLM, step: int, out: Path) -> None:
    """Write the weights of one step in float16; the config says float32, and so they are loaded."""
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, out / f"model.step{step}.safetensors", {"format": "pt"})


def train(out: Path) -> None:
    """Train from the first to the last step; write config, tokenizer and every checkpoint."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config())
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    write_tokenizer(out)
    attention, rest = parts(model)
    optimizers = (
        torch.optim.SGD(attention, momentum=0.9),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
    )
    began = time.monotonic()
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            save(model, step, out)
        ids, weights = draw(step)
        logits = model(ids[:, :-1]).logits
        each = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (each * weights).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for weight in attention:
            level(weight)
        for optimizer, rate in zip(optimizers, RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARM)
            optimizer.step()
            optimizer.zero_grad()
        if step % 25 == 0:
            print(
                f"step {step} loss {loss.item():.4f} {time.monotonic() - began:.0f} s", flush=True
            )


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out)


if __name__ == "__main__":
    main()
