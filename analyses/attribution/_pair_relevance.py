"""Gradient relevance of encoder–decoder models: what the answer draws on in source and target.

Equations 5 to 11 of Chefer et al., Generic Attention-model Explainability (2103.15679): s and q are
two sequences, and R_sq says what the positions of s draw on in q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._runtime.results import Results
from headscope.kernels.api import Gradient, Request, push
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes import load_model
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall
from headscope.probes.models.encoder_decoder import KINDS, SELF
from headscope.probes.models.model import Model
from headscope.probes.models.pair import Pair

Map = NDArray[np.float64]


def weigh(weights: Map, gradient: Map) -> Map:
    """Return Ā = mean over heads of (∇A ⊙ A)⁺ of a layer's maps (head, query, key) (equation 5)."""
    return np.asarray((weights * gradient).clip(min=0.0).mean(0))


def normalized(relevance: Map) -> Map:
    """Divide the rows of R − I by their sums and add I (equations 8 and 9); rows of 0 stay 0.

    >>> normalized(np.array([[1.0, 0.0], [3.0, 2.0]])).tolist()
    [[1.0, 0.0], [0.75, 1.25]]
    """
    identity = np.eye(len(relevance))
    propagated = relevance - identity
    sums = propagated.sum(1, keepdims=True)
    return np.asarray(
        np.divide(propagated, sums, out=np.zeros_like(propagated), where=sums > 0) + identity
    )


@dataclass
class Relevance:
    """The relevances of two sequences while layers are gone through, first layer first."""

    ss: Map
    qq: Map
    sq: Map
    qs: Map

    @classmethod
    def start(cls, s: int, q: int) -> "Relevance":
        """Start with identity matrices: every token is relevant to itself alone."""
        return cls(np.eye(s), np.eye(q), np.zeros((s, q)), np.zeros((q, s)))

    def swapped(self) -> "Relevance":
        """Return the same with s and q exchanged."""
        return Relevance(self.qq, self.ss, self.qs, self.sq)

    def attend_self(self, weighed: Map) -> "Relevance":
        """Add a self-attention layer of s (equations 6 and 7)."""
        return Relevance(self.ss + weighed @ self.ss, self.qq, self.sq + weighed @ self.sq, self.qs)

    def attend_cross(self, weighed: Map) -> "Relevance":
        """Add a layer in which s attends to q, Ā (s, q) (equations 10 and 11)."""
        sq = self.sq + normalized(self.ss).T @ weighed @ normalized(self.qq)
        return Relevance(self.ss + weighed @ self.qs, self.qq, sq, self.qs)

    def attend_co(self, weighed: Map, back: Map) -> "Relevance":
        """Add a layer of co-attention: s attends to q and q to s, both from the state before."""
        of_s, of_q = self.attend_cross(weighed), self.swapped().attend_cross(back).swapped()
        return Relevance(of_s.ss, of_q.qq, of_s.sq, of_q.qs)


def of_pair(
    model: Model, source: Sequence[int], target: Sequence[int], answer: int | None = None
) -> xr.Dataset:
    """Compute the relevance of source and target to an encoder–decoder model's next token.

    Encoder layers first, then of every decoder layer its self-attention and its cross-attention.

    Parameters
    ----------
    model
        An encoder–decoder model, whatever attention it was loaded with.
    source, target
        Token ids that encoder and decoder read, the decoder's start token first.
    answer
        Token id whose logit after the target is followed; what the model predicts without it.

    Returns
    -------
    Dataset with ``source_relevance`` (key) and ``target_relevance`` (query) of the last target
    position, and ``cross_relevance`` (query, key).
    """
    if model.attention == SELF:
        raise NotApplicable(f"model: {model.name} has no encoder and decoder; use run")
    if not len(source) or not len(target):
        raise InvalidInput("source: an empty text; give a token or more to encoder and decoder")
    maps = {}
    for kind in KINDS:
        maps[kind], answer = _weighed(load_model(model, attention=kind), source, target, answer)
    # s is the target, which attends to q, the source.
    state = Relevance.start(len(target), len(source)).swapped()
    for self_weights in maps["encoder"]:
        state = state.attend_self(self_weights)
    state = state.swapped()
    for self_weights, cross_weights in zip(maps["decoder"], maps["cross"], strict=True):
        state = state.attend_self(self_weights).attend_cross(cross_weights)
    provenance = xr.Dataset(
        coords={"layer": np.arange(model.layers)},
        attrs={"model": model.name, "revision": model.revision},
    )
    results = Results(
        provenance, source="Chefer et al. 2103.15679",
        convention="equations 5 to 11; rows of R − I that are 0 stay 0 in equation 8",
    )  # fmt: skip
    meaning = ("relevance", "sequential", 0)
    results.add_all(
        ("source_relevance", ("key",), state.sq[-1], "Relevance of the source", meaning),
        ("target_relevance", ("query",), state.ss[-1], "Relevance of the target", meaning),
        ("cross_relevance", ("query", "key"), state.sq, "What the target draws on in the source",
         meaning),
    )  # fmt: skip
    size = {"query": np.arange(len(target)), "key": np.arange(len(source))}
    return results.dataset(size, answer=int(answer or 0))


def _weighed(
    model: Model, source: Sequence[int], target: Sequence[int], answer: int | None
) -> tuple[list[Map], int]:
    """Return Ā of every layer of the model's chosen attention (query, key), and the answer."""
    calls: list[tuple[AttentionCall, Float[Tensor, "1 head query size"]]] = []

    def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        # A model without trainable weights has no gradient of its own.
        calls.append((call, z if z.requires_grad else z.requires_grad_()))

    ids = Pair(torch.tensor([list(source)]), torch.tensor([list(target)]))
    with torch.enable_grad():
        logits = run(model, ids, Reader(Request(stats=()), (), take), head=True)[0, -1]
        answer = int(logits.argmax()) if answer is None else answer
        slopes = torch.autograd.grad(logits[answer], [z for _, z in calls])
    maps = []
    pairs = sorted(zip(calls, slopes, strict=True), key=lambda pair: pair[0][0].layer)
    for (call, z), slope in pairs:
        heads = z.shape[1]
        q, k, v = (vectors.detach() for vectors in (call.query, call.key, call.value))
        rows = push(
            torch.eye(z.shape[2])[None, None], q, k, call.variant(),
            heads=torch.full((heads,), 1 / heads), gradient=Gradient(v, slope),
        )  # fmt: skip
        maps.append(rows[0, 0].T.double().cpu().numpy())
    return maps, answer
