"""Train the bundled model on text made by the task generators.

Run by hand: ``python -P -m headscope.probes.bundled.train --out FOLDER`` (about 40 minutes on
two CPU cores with bfloat16 matrix units). Progress goes to standard output, checkpoints to the
folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from headscope.probes.bundled.corpus import rows, vocabulary
from headscope.probes.bundled.phases import PHASES
from headscope.probes.bundled.tokenizer import write_tokenizer

SEED = 20
BATCH = {96: 48, 192: 24, 512: 9, 1024: 4}


def config() -> LlamaConfig:
    """Shape of the model: Llama, 4 layers of 8 query heads on 4 key-value heads, width 256."""
    return LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=512,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=1,
        dtype="float32",
    )


def _turn(x: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat((-high, low), -1)


def states(model: LlamaForCausalLM, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Last hidden states, the arithmetic of `LlamaModel` with fewer and larger products.

    Short rows form their attention matrix: on CPU the blockwise backward is slower there.
    """
    batch, length = ids.shape
    x = functional.embedding(ids, model.model.embed_tokens.weight)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        y = functional.rms_norm(x, (256,), layer.input_layernorm.weight, 1e-6)
        joint = torch.cat(
            (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        )
        mixed = functional.linear(y, joint).view(batch, length, 16, 32)
        both, value = mixed[:, :, :12], mixed[:, :, 12:]
        both = both * cos + _turn(both) * sin
        query = both[:, :, :8].transpose(1, 2)
        key, value = both[:, :, 8:].transpose(1, 2), value.transpose(1, 2)
        if length <= 192:
            mask = torch.full((length, length), -math.inf).triu(1)
            scores = query.reshape(batch, 4, 2 * length, 32) @ key.transpose(-1, -2)
            scores = scores.view(batch, 4, 2, length, length) * 32**-0.5 + mask
            weights = scores.softmax(-1).view(batch, 4, 2 * length, length).to(value.dtype)
            z = (weights @ value).view(batch, 8, length, 32)
        else:
            key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
            z = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + functional.linear(
            z.transpose(1, 2).reshape(batch, length, 256), attention.o_proj.weight
        )
        y = functional.rms_norm(x, (256,), layer.post_attention_layernorm.weight, 1e-6)
        gate, up = functional.linear(
            y, torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
        ).chunk(2, -1)
        x = x + functional.linear(functional.silu(gate) * up, mlp.down_proj.weight)
    return functional.rms_norm(x, (256,), model.model.norm.weight, 1e-6)


def rotation(model: LlamaForCausalLM, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, (1, length, 1, 32)."""
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
    return cos[:, :, None].to(dtype), sin[:, :, None].to(dtype)


def rate_at(step: int) -> float:
    """Learning rate: warm-up over 200 steps, flat within a phase, the last phase falls to 2 %."""
    start = 0
    for phase in PHASES:
        if step < phase.until:
            break
        start = phase.until
    rate = phase.rate * min(1.0, (step + 1) / 200)
    if phase is PHASES[-1]:
        rate *= 1 - 0.98 * (step - start) / (phase.until - start)
    return rate


def draw(step: int) -> tuple[Tensor, Tensor, list[str]]:
    """Ids (batch, length + 1), weights (batch, length) and the rows' tasks of one step."""
    phase = next(phase for phase in PHASES if step < phase.until)
    generator = torch.Generator().manual_seed(SEED * 1_000_000 + step)
    shares = torch.tensor([share for _, share in phase.lengths])
    length = phase.lengths[int(torch.multinomial(shares, 1, generator=generator))][0]
    ids, weights, kinds = rows(phase.sources, BATCH[length], length, f"corpus {SEED} {step}")
    return torch.tensor(ids), torch.tensor(weights), kinds


def by_task(loss: Tensor, weights: Tensor, where: Tensor, kinds: list[str]) -> dict[str, float]:
    """Mean loss on answers, by task."""
    every = torch.zeros_like(weights)
    every[where] = loss
    answers = weights >= 0.5
    found = {}
    for kind in set(kinds) - {"text"}:
        chosen = answers & torch.tensor([name == kind for name in kinds])[:, None]
        if chosen.any():
            found[kind] = every[chosen].mean().item()
    return found


def save(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int, out: Path) -> None:
    """Write the model folder and, beside it, the optimizer's moments."""
    model.save_pretrained(out)
    write_tokenizer(out)
    moments = {}
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            moments[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    save_file(moments, out / "optimizer.safetensors", {"step": str(step)})
    (out / "step.json").write_text(json.dumps({"step": step}))


def resume(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, source: Path) -> int:
    """Load a checkpoint folder; returns the step to go on from."""
    stored = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.load_state_dict(stored.state_dict())
    moments = load_file(source / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            moment: moments[f"{moment}.{name}"] for moment in ("exp_avg", "exp_avg_sq", "step")
        }
    return int(json.loads((source / "step.json").read_text())["step"])


def train(out: Path, start: Path | None, every: int) -> None:
    """Run every phase, writing a checkpoint each `every` steps."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config())
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    step = resume(model, optimizer, start) if start else 0
    compiled = torch.compile(states, dynamic=False)
    turns = {length: rotation(model, length, torch.bfloat16) for length in BATCH}
    began = time.monotonic()
    losses: list[float] = []
    parts: dict[str, list[float]] = {}
    while step < PHASES[-1].until:
        ids, weights, kinds = draw(step)
        length = weights.shape[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = compiled(model, ids[:, :-1], *turns[length])
            # Only predicted positions are unembedded.
            where = weights > 0
            logits = functional.linear(hidden[where], model.lm_head.weight)
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][where], reduction="none")
        mean = (loss * weights[where]).sum() / weights.sum()
        mean.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean.item())
        for name, value in by_task(loss.detach(), weights, where, kinds).items():
            parts.setdefault(name, []).append(value)
        step += 1
        if step % 50 == 0:
            spent = time.monotonic() - began
            shown = " ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in sorted(parts.items()))
            print(
                f"step {step} loss {sum(losses) / len(losses):.4f} {spent:.0f} s {shown}",
                flush=True,
            )
            losses.clear()
            parts.clear()
        if step % every == 0 or step == PHASES[-1].until:
            save(model, optimizer, step, out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--start", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.out, options.start, options.every)


if __name__ == "__main__":
    main()
