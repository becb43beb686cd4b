"""Build and load the compiled sweep, verify it against torch, and decide where it is used."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from headscope.kernels.attention_spec import AttentionSpec
from headscope.kernels.compiled import compiler
from headscope.kernels.compiled.operands import Operands, Pack, packer
from headscope.kernels.compiled.sweep import Sweep
from headscope.kernels.compiled.sweep_call import Call, Run
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels.logits import Logits
from headscope.kernels.panels.scores import Scores
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.request import Request
from headscope.kernels.visibility import Visibility

Engine = Literal["auto", "panels", "compiled"]
ENGINES: tuple[Engine, ...] = ("auto", "panels", "compiled")

SOURCE = Path(__file__).with_name("sweep.c")


@dataclass(frozen=True)
class Library:
    """The loaded library.

    ``run`` is the sweep, None when there is none; ``note`` says in a line where the library comes
    from, or why there is none. ``pack`` packs keys and values for the processor's matrix unit, None
    where it has none; ``memory_bytes`` counts the bytes of memory that a call needs for its rows.
    """

    run: Run | None
    note: str
    pack: Pack | None = None
    memory_bytes: Callable[[Call], int] = lambda call: 0


@cache
def library() -> Library:
    """Build and load the sweep, once in a process."""
    built = compiler.build(SOURCE)
    if built.path is None:
        return Library(None, built.note)
    try:
        opened = ctypes.CDLL(str(built.path))
        loaded, memory_bytes, pack = opened.sweep, opened.memory_bytes, packer(opened)
    except (OSError, AttributeError) as error:
        return Library(None, f"{built.note}, but it does not load: {error}")
    loaded.argtypes = memory_bytes.argtypes = (ctypes.POINTER(Call),)
    loaded.restype, memory_bytes.restype = ctypes.c_int, ctypes.c_int64

    def need(call: Call) -> int:
        return int(memory_bytes(ctypes.byref(call)))

    def run(call: Call, scratch: Scratch) -> int:
        call.memory = scratch.take("rows", need(call)).data_ptr()
        # ctypes lets other Python threads run meanwhile.
        return int(loaded(ctypes.byref(call)))

    if not agrees(run):
        return Library(None, f"{built.note}, but it computes other numbers than torch")
    about = "; no matrix unit"
    if pack is not None:
        about = ", with the matrix unit"
        if not agrees_with_torch(run, pack):
            about, pack = "; the matrix unit computes other numbers than torch", None
    return Library(run, built.note + about, pack, need)


def agrees(run: Run) -> bool:
    """Compare a small panel with torch: a library is used only if it gives the same."""
    logits = torch.linspace(-9.0, 9.0, 3 * 77).sin().mul(5.0).view(1, 1, 3, 77)
    visibility = Visibility(3, 77, causal=True, window=70)
    block = visibility.block(slice(0, 3), 1)
    logits = logits[..., block.keys]
    panel = logits.clone()
    reductions = frozenset({"topk_index", "weights"})
    sweep = Sweep(run, Request(stats=(), k=2), visibility, None, None, reductions)
    results = sweep.allocate(block, panel.shape)
    complete = sweep.reduce(block, results, float("inf"), panel, panel)
    visibility.mask_logits(logits, block)
    weights = logits.softmax(dim=-1)
    return (
        complete
        and torch.allclose(panel, weights, rtol=1e-6, atol=1e-9)
        and torch.allclose(results["max_prob"], weights.amax(dim=-1), rtol=1e-6)
        and torch.equal(results["topk_index"], logits.topk(2, dim=-1).indices)
    )


def agrees_with_torch(run: Run, pack: Pack) -> bool:
    """Compare a small call with torch: the matrix unit is used only if it gives the same."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, rows, 40, generator=draw) for rows in (50, 70, 70))
    spec = AttentionSpec().fit(q, k)
    assert spec.scale is not None
    visibility = spec.visibility(50, 70, q.device)
    scores = Scores(spec, visibility, slice(0, 1), slice(0, 1))
    logits = Logits(q[:, None], k[0].mT, spec.scale, scores)
    scratch = Scratch()
    operands = Operands.of(logits, v[0], pack, scratch)
    reductions = frozenset({"attn_output"})
    sweep = Sweep(run, Request(stats=()), visibility, None, None, reductions, operands, scratch)
    block = visibility.block(slice(0, 50), 1)
    none = torch.empty(1, 1, 50, 70, device="meta")
    results = sweep.allocate(block, none.shape)
    complete = sweep.reduce(block, results, float("inf"), None, none)
    products = q @ k.mT * spec.scale
    visibility.mask_logits(products, block)
    return complete and torch.allclose(
        results["attn_output"], products.softmax(dim=-1) @ v, rtol=1e-5, atol=1e-6
    )


def choose(
    engine: Engine, spec: AttentionSpec, precision: torch.dtype, device: torch.device
) -> Library | None:
    """Decide between the sweep and torch."""
    if engine not in ENGINES:
        raise InvalidInput(f"engine: {engine!r}; choose from {', '.join(ENGINES)}")
    reason = None
    if engine == "panels":
        return None
    if spec.sigmoid:
        reason = "it has no sigmoid attention"
    elif precision != torch.float32:
        reason = "it computes in float32"
    elif device.type != "cpu":
        reason = f"it runs on the processor, not on {device}"
    elif library().run is None:
        reason = library().note
    if reason is None:
        return library()
    if engine == "compiled":
        raise InvalidInput(f"engine: no compiled sweep: {reason}; or use engine='auto'")
    return None
