"""The training loop that all recipes share."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from headscope_training.checkpoint import CHECKPOINT, resume, save, snapshot_file, write_weights
from headscope_training.recipe import Recipe

LOG_EVERY = 25


def train(
    recipe: Recipe, out: Path, every: int = 100, steps: int | None = None, compiled: bool = False
) -> None:
    """Train from the last checkpoint on, or from the start.

    Parameters
    ----------
    recipe
        What to train.
    out
        Folder of the checkpoint and the tokenizer.
    every
        Steps between checkpoints.
    steps
        Stop after this step of the schedule; default: at its end.
    compiled
        Whether to compile the recipe's forward pass.
    """
    out.mkdir(parents=True, exist_ok=True)
    recipe.prepare(out)
    last = min(steps or recipe.phases[-1].until, recipe.phases[-1].until)
    if recipe.processes == 1:
        _run(0, recipe, out, every, last, compiled)
        return
    with TemporaryDirectory() as folder:
        arguments = (recipe, out, every, last, compiled, str(Path(folder) / "rendezvous"))
        spawn(_run, arguments, recipe.processes)  # type: ignore[no-untyped-call]


def _run(
    rank: int,
    recipe: Recipe,
    out: Path,
    every: int,
    last: int,
    compiled: bool,
    rendezvous: str | None = None,
) -> None:
    """Run one process, which takes one row in `processes` of every step."""
    processes = recipe.processes
    if rendezvous is not None:
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo", f"file://{rendezvous}", rank=rank, world_size=processes
        )
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    parameters = list(model.parameters())
    optimizers = recipe.optimizers(model)
    only = [optimizer for optimizer, _ in optimizers]
    step = resume(model, only, out) if (out / CHECKPOINT).is_file() else 0
    if processes > 1:
        distributed.barrier()
    if compiled:
        recipe.forward = torch.compile(recipe.forward, dynamic=False)
    if rank == 0 and step == 0 and 0 in recipe.snapshots:
        write_weights(model, snapshot_file(out, 0))
    began = time.monotonic()
    losses = defaultdict[str, list[float]](list)
    while step < last:
        batch = recipe.draw(step).rows(slice(rank, None, processes))
        mean, parts = recipe.loss(model, batch)
        mean.backward()  # type: ignore[no-untyped-call]
        if processes > 1:
            _average_gradients(parameters, processes)
        recipe.limit_gradients(model)
        for optimizer, factor in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * recipe.rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in {"loss": mean.item(), **parts}.items():
            losses[name].append(value)
        step += 1
        if rank:
            continue
        if step % LOG_EVERY == 0:
            means = " ".join(f"{name} {sum(v) / len(v):.4f}" for name, v in losses.items())
            print(f"step {step} {means} ({time.monotonic() - began:.0f} s)", flush=True)
            losses.clear()
        if step in recipe.snapshots:
            write_weights(model, snapshot_file(out, step))
        if step % every == 0 or step == last:
            save(model, only, step, out)
    if processes > 1:
        distributed.destroy_process_group()


def _average_gradients(parameters: Sequence[Tensor], processes: int) -> None:
    """Average the gradients over the processes, in one message."""
    flat = torch.cat(
        [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    )
    distributed.all_reduce(flat)
    flat /= processes
    for parameter, part in zip(
        parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)
