"""A model's pass with relevance in place of gradients: rules that keep the score's whole.

Everything that is not linear becomes a factor that is held constant: attention weights (queries and
keys get no gradient), the scale of a norm, the gain f(x)/x of an activation, and the gate of a
gated product. In such a pass input × gradient is the relevance of the 0-limit of the ε rule, and
the score is the sum over the embeddings plus the sum over the biases. Norms, activations and gates
are recognised by their classes, never trusted: the sum tells whether anything was missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from headscope.analyses._relevance._rows import check_layers
from headscope.analyses._relevance.trace import Passed, Trace
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.attention.forward import Reader

if TYPE_CHECKING:
    from headscope.analyses._relevance.target import Target
    from headscope.analyses._stats.bootstrap import Array
    from headscope.probes.attention.interface import AttentionCall
    from headscope.probes.models.model import Model

# Products of a gate and a signal, by what their module calls its parts.
GATED = ("gate_proj", "gate_up_proj", "wi_0", "w1")
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
OTHERS = (nn.Softmax, nn.LogSoftmax, nn.MultiheadAttention)
# How configurations count experts.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# What float32 may leave of the score, and of the sum of everything's size.
GAP, ROUNDING = 1e-4, 1e-6


@dataclass
class Ledger:
    """Relevance that does not reach the tokens: that of biases, and that absorbed by ε."""

    bias: float = 0.0
    absorbed: float = 0.0
    size: float = 0.0

    def add(self, gradient: Tensor, bias: Tensor) -> None:
        """Record the relevance of a bias."""
        parts = gradient.double() * bias.detach().double()
        self.bias += float(parts.sum())
        self.size += float(parts.abs().sum())


class FrozenReader(Reader):
    """Answer attention calls with weights that no relevance passes through."""

    def __call__(self, call: AttentionCall) -> Tensor:
        """Compute one layer, its queries and keys held constant."""
        still = replace(call, query=call.query.detach(), key=call.key.detach())
        return super().__call__(still)


class LinearTrace(Trace):
    """A trace whose gradients are those under the rules of relevance.

    ``epsilon`` is that of the ε rule, in the units of each linear layer's output; what it takes
    is ``ledger.absorbed``.
    """

    reader = FrozenReader

    def __init__(self, model: Model, target: Target, epsilon: float = 0.0) -> None:
        super().__init__(model, target)
        check_layers(self)
        config = model.module.config.get_text_config()
        if any(getattr(config, name, None) for name in EXPERTS):
            raise NotApplicable(
                f"model: {model.architecture} chooses experts for each token, and the rules of LRP "
                "know none; use another method"
            )
        self.epsilon, self.ledger = epsilon, Ledger()

    @cached_property
    def tokens(self) -> Array:
        """Return the relevance of every token (token,); refuse a model where a part is missing."""
        parts = self.embedding.double() * self.embedding_gradient.double()
        relevance = np.asarray(parts.sum(-1).cpu().numpy())
        size = float(parts.abs().sum()) + self.ledger.size
        gap = self.gap(relevance)
        if abs(gap) > GAP * abs(self.score) + ROUNDING * size:
            raise NotApplicable(
                f"model: relevance of {self.model.name} ({self.model.architecture}) misses "
                f"{amount(gap)} of a score of {amount(self.score)}: it holds something that the "
                "rules of LRP do not know, such as a soft cap of the logits or experts; use "
                "another method"
            )
        return relevance

    def gap(self, tokens: Array) -> float:
        """Return what of the score neither tokens nor biases nor ε have, in logits."""
        return self.score - float(tokens.sum()) - self.ledger.bias - self.ledger.absorbed

    def heads(self) -> Array:
        """Return the relevance that passes through every head (layer, head); NaN without a map."""
        relevance = np.full((self.model.layers, self.model.heads), np.nan)
        for number, layer in self.graded_layers.items():
            assert layer.dz is not None
            parts = layer.z.double() * layer.dz.double()
            relevance[number] = parts.sum((0, 2, 3)).cpu().numpy()
        return relevance

    def _pass(self, *, gradients: bool) -> Passed:
        self.ledger.bias = self.ledger.absorbed = self.ledger.size = 0.0
        with linearized(self.model, self.epsilon, self.ledger):
            return super()._pass(gradients=gradients)


_KNOWN: WeakKeyDictionary[Trace, LinearTrace] = WeakKeyDictionary()


def linear(trace: Trace) -> LinearTrace:
    """Return the pass of relevance that belongs to a trace, made once and checked."""
    if trace not in _KNOWN:
        _KNOWN[trace] = LinearTrace(trace.model, trace.target)
    _KNOWN[trace].tokens  # noqa: B018 - refuses what the rules do not know
    return _KNOWN[trace]


@contextmanager
def linearized(model: Model, epsilon: float, ledger: Ledger) -> Iterator[None]:
    """Apply the rules to the modules of a model; all is restored afterwards."""
    module: nn.Module = model.module
    gates = {
        id(part)
        for parent in module.modules()
        if any(hasattr(parent, name) for name in GATED)
        for part in parent.children()
    }
    with ExitStack() as stack:
        for part in module.modules():
            rule: Any = None
            if "Norm" in type(part).__name__:
                rule = _norm(ledger)
            elif _activates(part):
                rule = _gate if id(part) in gates else _activation
            elif isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D":
                rule = _linear(ledger, epsilon)
            if rule is not None:
                stack.enter_context(part.register_forward_hook(rule))
        yield


def _activates(part: nn.Module) -> bool:
    elementwise = type(part).__module__ in ACTIVATIONS or "gelu" in type(part).__name__.lower()
    return elementwise and not isinstance(part, OTHERS)


def _gate(part: nn.Module, args: Any, result: Tensor) -> Tensor:
    return result.detach()


def _activation(part: Any, args: Any, result: Tensor) -> Tensor:
    """Pass relevance on as it is: the gain f(x)/x is a constant, f'(0) where x is 0."""
    x = args[0]
    with torch.no_grad():
        safe = torch.where(x.abs() < 1e-6, 1e-6, x)
        gain = part.forward(safe) / safe
    linear: Tensor = x * gain
    return linear


def _linear(ledger: Ledger, epsilon: float) -> Any:
    def rule(part: Any, args: Any, result: Tensor) -> None:
        if not result.requires_grad or (part.bias is None and not epsilon):
            return
        outputs = result.detach()

        def back(gradient: Tensor) -> Tensor:
            if epsilon:
                incoming = gradient
                gradient = incoming * outputs.abs() / (outputs.abs() + epsilon)
                ledger.absorbed += float(((incoming - gradient) * outputs).double().sum())
            if part.bias is not None:
                ledger.add(gradient, part.bias)
            return gradient

        result.register_hook(back)  # type: ignore[no-untyped-call]

    return rule


def _norm(ledger: Ledger) -> Any:
    def rule(part: Any, args: Any, result: Tensor) -> Tensor | None:
        x = args[0] if args else None
        if x is None or not result.requires_grad:
            return None
        with torch.no_grad():
            probe = x.new_ones(1, x.shape[-1])
            shift = part.forward(torch.zeros_like(probe))[0]
            gain = part.forward(probe)[0] - shift
            centred = isinstance(part, nn.LayerNorm)
            if centred:
                gain = torch.ones_like(shift) if part.weight is None else part.weight.detach()
        inner = (x - x.mean(-1, keepdim=True) if centred else x) * gain
        with torch.no_grad():
            size = inner.square().sum(-1, keepdim=True).clamp_min(1e-30)
            scale = ((result - shift) * inner).sum(-1, keepdim=True) / size
            if not torch.allclose(inner * scale + shift, result, rtol=1e-3, atol=1e-3):
                raise NotApplicable(
                    f"model: {type(part).__name__} is no norm that the rules of LRP know"
                )
        linear: Tensor = inner * scale + shift
        if bool(shift.any()):
            note = partial(ledger.add, bias=shift)
            linear.register_hook(note)  # type: ignore[no-untyped-call]
        return linear

    return rule
