"""Train the bundled model of real text on the standard library of the running Python.

Run by hand: ``nice -n 5 python -P -m headscope.probes.bundled_python.train --out FOLDER`` (about 12
minutes on two idle CPU cores with bfloat16 matrix units). Stopped at any time, it goes on from the
last checkpoint when run again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer as Merges
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from headscope.probes.bundled_python.corpus import sources
from headscope.probes.bundled_python.tokenizer import SIZE, build, write_tokenizer

SEED = 21
WIDTH, HEADS = 192, 6
WARM = 150
# Processes of one thread meet once a step; threads would wait for each other at every operation,
# which is slow on cores that others use too.
PROCESSES = 2
# About as many tokens a step at every length.
BATCH = {128: 20, 1024: 2}
MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")


@dataclass(frozen=True)
class Phase:
    """Steps up to `until`; `lengths` is a choice of row lengths with shares.

    `repeated` is the share of rows of random tokens said again and again, `period` at most: copying
    starts with near copies and grows to any distance.
    """

    until: int
    rate: float
    lengths: tuple[tuple[int, float], ...]
    repeated: float
    period: int
    falls: bool = False


PHASES = (
    Phase(1400, 2.5e-3, ((128, 1.0),), 0.35, 64),
    Phase(2400, 2.5e-3, ((128, 0.5), (1024, 0.5)), 0.15, 512, falls=True),
)


def config() -> GPT2Config:
    """Shape of the model: GPT-2, 6 layers of 6 heads, width 192, 1024 learned positions."""
    return GPT2Config(
        vocab_size=SIZE,
        n_positions=1024,
        n_embd=WIDTH,
        n_layer=6,
        n_head=HEADS,
        n_inner=2 * WIDTH,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        dtype="float32",
    )


def place(model: GPT2LMHeadModel) -> None:
    """Start the learned positions as waves of 4 to 4096 tokens, as large as the tokens.

    From random positions a head learns to look one token back for each position apart, which takes
    thousands of steps; from waves it is one rotation for all of them.
    """
    lengths = 4 * 1024 ** torch.linspace(0, 1, WIDTH // 2)
    angles = 2 * math.pi * torch.arange(1024)[:, None] / lengths
    scale = model.transformer.wte.weight.detach().square().mean().sqrt()
    waves = torch.cat((angles.sin(), angles.cos()), 1) * 2**0.5 * scale
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(waves)


def states(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """Last hidden states, the arithmetic of `GPT2Model` in fewer steps.

    Short rows form their attention matrix: on CPU the blockwise backward is slower there.
    """
    batch, length = ids.shape
    inner = model.transformer
    x = functional.embedding(ids, inner.wte.weight) + inner.wpe.weight[:length]
    blocks: Any = inner.h
    for block in blocks:
        one, two = block.ln_1, block.ln_2
        y = functional.layer_norm(x, (WIDTH,), one.weight, one.bias)
        mixed = functional.linear(y, block.attn.c_attn.weight.T, block.attn.c_attn.bias)
        query, key, value = mixed.view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if length <= 128:
            mask = torch.full((length, length), -math.inf).triu(1)
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
            z = scores.softmax(-1).to(value.dtype) @ value
        else:
            z = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        z = z.transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + functional.linear(z, block.attn.c_proj.weight.T, block.attn.c_proj.bias)
        y = functional.layer_norm(x, (WIDTH,), two.weight, two.bias)
        y = functional.linear(y, block.mlp.c_fc.weight.T, block.mlp.c_fc.bias)
        y = functional.gelu(y, approximate="tanh")
        x = x + functional.linear(y, block.mlp.c_proj.weight.T, block.mlp.c_proj.bias)
    last = inner.ln_f
    return functional.layer_norm(x, (WIDTH,), last.weight, last.bias)


def loss(model: GPT2LMHeadModel, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy of each next token."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = functional.linear(states(model, ids[:, :-1]), model.lm_head.weight)
    each = functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return (each * weights.flatten()).sum() / weights.sum()


def rate_at(step: int) -> float:
    """Learning rate: warm-up, flat within a phase, in the last phase down to 2 %."""
    start = 0
    for phase in PHASES:
        if step < phase.until:
            break
        start = phase.until
    rate = phase.rate * min(1.0, (step + 1) / WARM)
    if phase.falls:
        rate *= 1 - 0.98 * min(1.0, (step - start) / (phase.until - start))
    return rate


def draw(stream: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Ids (batch, length + 1) and weights (batch, length) of one step.

    Rows are the end-of-text token and a stretch of the stream of files; some are random tokens
    said again and again, of which the first time does not count.
    """
    phase = next(phase for phase in PHASES if step < phase.until)
    generator = torch.Generator().manual_seed(SEED * 1_000_000 + step)
    shares = torch.tensor([share for _, share in phase.lengths])
    length = phase.lengths[int(torch.multinomial(shares, 1, generator=generator))][0]
    size = BATCH[length]
    starts = torch.randint(len(stream) - length, (size,), generator=generator)
    rows = torch.stack([stream[start : start + length] for start in starts.tolist()])
    weights = torch.ones(size, length)
    for row in range(size):
        if torch.rand((), generator=generator) < phase.repeated:
            share = torch.rand((), generator=generator).item()
            period = int(2 * (min(phase.period, length // 2) / 2) ** share)
            again = torch.randint(1, SIZE, (period,), generator=generator)
            rows[row] = again.repeat(length // period + 1)[:length]
            weights[row, :period] = 0
    return functional.pad(rows, (1, 0)), weights


def optimizers(model: GPT2LMHeadModel) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, gains and biases."""
    inner = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    taken = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in outer if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in outer if p.ndim != 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(inner, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def save(
    model: GPT2LMHeadModel, optimizers: Sequence[torch.optim.Optimizer], step: int, out: Path
) -> None:
    """Write weights and moments to one file that is never half written."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach()
        for optimizer in optimizers:
            for moment in MOMENTS:
                if moment in optimizer.state.get(parameter, {}):
                    tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    partial = out / "checkpoint.part"
    save_file(tensors, partial, {"step": str(step)})
    partial.replace(out / "checkpoint.safetensors")


def resume(model: GPT2LMHeadModel, optimizers: Sequence[torch.optim.Optimizer], out: Path) -> int:
    """Load a checkpoint, with the moments of the optimizers given; returns its step."""
    owners = {
        id(p): one for one in optimizers for group in one.param_groups for p in group["params"]
    }
    with safe_open(out / "checkpoint.safetensors", "pt") as stored, torch.no_grad():
        known = set(stored.keys())
        for name, parameter in model.named_parameters():
            parameter.copy_(stored.get_tensor(name))
            if id(parameter) in owners:
                owners[id(parameter)].state[parameter] = {
                    moment: stored.get_tensor(f"{moment}.{name}")
                    for moment in MOMENTS
                    if f"{moment}.{name}" in known
                }
        return int(stored.metadata()["step"])


def read_stream(out: Path) -> Tensor:
    """Read the files to train on as one row of ids, END before each; train the tokenizer first."""
    texts = [source.text for source in sources(held_out=False)]
    if (out / "tokenizer.json").is_file():
        tokenizer = Merges.from_file(str(out / "tokenizer.json"))
    else:
        tokenizer = build(texts)
        write_tokenizer(tokenizer, out)
    ids = [one for encoding in tokenizer.encode_batch(texts) for one in encoding.ids]
    print(f"{len(texts)} files, {sum(map(len, texts))} characters, {len(ids)} tokens", flush=True)
    return torch.tensor(ids)


def average(parameters: Sequence[Tensor]) -> None:
    """Average the gradients over the processes, in one message."""
    flat = torch.cat(
        [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    )
    distributed.all_reduce(flat)
    flat /= PROCESSES
    for parameter, part in zip(
        parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)


def train(rank: int, stream: Tensor, out: Path, every: int, compiled: bool, meeting: str) -> None:
    """Run every phase from the last checkpoint on, one process with every other row of a step."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(config())
    place(model)
    parameters = list(model.parameters())
    muon, adam = optimizers(model)
    resumed = (out / "checkpoint.safetensors").is_file()
    step = resume(model, (muon, adam), out) if resumed else 0
    distributed.barrier()
    function = torch.compile(loss, dynamic=False) if compiled else loss
    began = time.monotonic()
    losses: list[float] = []
    while step < PHASES[-1].until:
        ids, weights = draw(stream, step)
        mean = function(model, ids[rank::PROCESSES], weights[rank::PROCESSES])
        mean.backward()  # type: ignore[no-untyped-call]
        average(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, factor in ((muon, 2.0), (adam, 1.0)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(mean.item())
        step += 1
        if step % 25 == 0 and rank == 0:
            spent = time.monotonic() - began
            print(f"step {step} loss {sum(losses) / len(losses):.4f} {spent:.0f} s", flush=True)
            losses.clear()
        if rank == 0 and (step % every == 0 or step == PHASES[-1].until):
            save(model, (muon, adam), step, out)
    distributed.destroy_process_group()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--compile", action="store_true", help="pays on an idle machine")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stream = read_stream(options.out)
    with TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        arguments = (stream, options.out, options.every, options.compile, meeting)
        spawn(train, arguments, PROCESSES)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
