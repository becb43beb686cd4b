"""What passes of a model cost on this machine: seconds and bytes, measured on short ones."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headscope import analyses, probes
from headscope.analyses._interventions import head_gradients
from headscope.analyses._interventions.ablation import SWEEP_TOKENS
from headscope.analyses._interventions.batched_edits import RowGate
from headscope.analyses._runtime.inputs import positionals
from headscope.analyses._runtime.requirements import Needs
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.capturing.capture import stored_bytes
from headscope.probes.capturing.memory_estimate import BATCH_TOKENS
from headscope.probes.capturing.memory_measurement import PeakTensorBytes
from headscope.probes.capturing.options import applicable_stats
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.analyses._runtime.cost import Expected, Row
    from headscope.analyses._runtime.inputs import PromptSets
    from headscope.probes.models.model import Model

# Tokens of the passes that are measured, and how often each is timed.
SHORT, LONG, TIMES = 16, 128, 2
# Logits are held twice: as they come, and as what a metric or a loss makes of them.
LOGITS = 2


@dataclass(frozen=True)
class PassCosts:
    """Seconds and bytes of the passes of a model.

    Attributes
    ----------
    call, token
        Seconds of a layer, whatever its tokens, and of each of them.
    unembedded
        Seconds of the logits of one position.
    sloped
        What a pass with its backward pass takes, as a multiple of one without.
    sloped_bytes
        Bytes of a token in a pass that is kept for a gradient.
    """

    call: float
    token: float
    unembedded: float
    sloped: float
    sloped_bytes: float


_known: weakref.WeakKeyDictionary[nn.Module, PassCosts] = weakref.WeakKeyDictionary()


def known(model: Model) -> PassCosts | None:
    """Return what passes of a model cost, where it was measured."""
    return _known.get(model.module)


def measure(model: Model, ids: Sequence[int]) -> PassCosts:
    """Measure what passes cost, once for each model; ``ids`` are any that it takes."""
    if model.module not in _known:
        _known[model.module] = _measure(model, ids)
    return _known[model.module]


def _measure(model: Model, ids: Sequence[int]) -> PassCosts:
    context = model.context or LONG
    few, many = (torch.tensor([([*ids] * size)[: min(size, context)]]) for size in (SHORT, LONG))
    plain, sloped = _run(model, few), _sloped(model, few)
    with PeakTensorBytes() as memory:
        sloped()
    layers, step = len(model.geometry.attending), max(many.numel() - few.numel(), 1)
    short, whole = _seconds(plain), _seconds(_run(model, many))
    token = max(whole - short, 0.0) / step / layers
    head = model.module.get_output_embeddings()
    unembedded = 0.0
    if head is not None:
        weight = head.weight
        hidden = torch.zeros(few.numel(), weight.shape[1], dtype=weight.dtype, device=weight.device)
        unembedded = _seconds(lambda: head(hidden).float().log_softmax(-1)) / few.numel()
    return PassCosts(
        call=max(short / layers - few.numel() * token, 0.0),
        token=token,
        unembedded=unembedded,
        sloped=_seconds(_sloped(model, many)) / whole,
        sloped_bytes=memory.peak / few.numel(),
    )


def _run(model: Model, ids: Tensor) -> Callable[[], Tensor]:
    """Return a pass as a function."""
    return lambda: run(model, ids, Reader(Request(stats=())), head=False)


def _sloped(model: Model, ids: Tensor) -> Callable[[], Any]:
    """Return a pass and the gradient of a gate on every head as a function."""

    def work() -> Any:
        with torch.enable_grad():
            gates = torch.ones(len(ids), model.layers, model.heads, device=model.device)
            edit = RowGate(gates.requires_grad_())
            hidden = run(model, ids, Reader(Request(stats=()), (edit,)), head=False)
            return torch.autograd.grad(hidden.float().sum(), gates)

    return work


def _seconds(work: Callable[[], Any]) -> float:
    """Return the mean time of some runs."""
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(TIMES):
            work()
    return (time.perf_counter() - start) / TIMES


def captured(sets: PromptSets, name: str) -> int | None:
    """Count the bytes that an analysis reads of a capture of its prompts; None without prompts."""
    drawn = sets.drawn(name)
    if "capture" not in positionals(name):
        return 0
    return None if drawn is None else stored_bytes(sets.model, drawn, **_needs(sets, name))


def _needs(sets: PromptSets, name: str) -> dict[str, Any]:
    needs: dict[str, Any] = Needs.of(analyses.load(name)).arguments()
    return {**needs, "stats": applicable_stats(needs["stats"], sets.model)}


def peak(sets: PromptSets, name: str, row: Row, expected: Expected, costs: PassCosts) -> int | None:
    """Count the bytes of the largest pass of an analysis, beyond the model and what it captured.

    Activations as measured, attention as estimated, logits as the number of positions has them;
    None where it runs the model on nothing.
    """
    if not expected.passes:
        return None
    model, ids = sets.model, sets.ids(name)
    config: Any = model.module.config.get_text_config()
    whole = max(len(some) * len(ids[some[0]]) for some in batches(ids, BATCH_TOKENS))
    captures = sets.to_capture(name) is not None
    needs = _needs(sets, name) if captures else {"stats": ()}
    each = probes.plan(model, sets.drawn(name), **needs).passing / whole
    # One prompt at a time, or as many of one length as fit.
    longest = max(map(len, ids))
    tokens = whole if row.most > 1.5 or captures else longest
    if any(row.each):  # of prompts of its own
        tokens = max(tokens, min(int(row.most * longest), BATCH_TOKENS))
    word = 4 * model.vocabulary * LOGITS
    share = min(expected.unembedded / (expected.passes * sum(map(len, ids))), 1.0)
    heads = len(model.geometry.attending) * model.heads
    found = [tokens * (each + share * word), heads * row.head_rows * word]
    if expected.sloped:
        kept = head_gradients.batch_tokens(model)
        found.append(min(max(kept, longest), whole) * costs.sloped_bytes + share * whole * word)
    if row.per_head or row.per_head_each:
        batch = min(whole, max(SWEEP_TOKENS, longest))
        streams = 4 * batch * (model.layers + 1) * int(config.hidden_size)
        found.append(streams + batch * expected.together * (each + row.sweep_asked * word))
    return math.ceil(max(found))
