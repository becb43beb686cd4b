"""Specification of attention: masks, caps, biases, sinks and edits between scores and weights."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels import inputs
from headscope.kernels.errors import InvalidInput
from headscope.kernels.visibility import Visibility
from headscope.kernels.weight_edits import WeightEdits, expect


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """Everything that makes weights of queries and keys, beside the two themselves.

    The logit of query i and key j is (cap(scale · q_i·k_j) - slope · |i - j| + bias_ij) / T, plus
    what edits add; the weights are the softmax of a row over the keys that the query sees.

    Parameters
    ----------
    scale
        Factor of the scores; None is 1/√size.
    causal
        Whether a query sees no later key. Query i is then at position key - query + i.
    window
        Number of keys back that a causal query sees, itself included; without ``causal`` the keys
        at distance below ``window`` on both sides.
    softcap
        Cap c of the scores, c · tanh(score / c).
    key_mask
        True at real keys. Padding enters no statistic, whatever it contains.
    query_mask
        True at real queries. By default all are, except that in causal attention a query is
        padding when its own key is.
    lengths
        Tokens of each of several sequences that lie one behind the other; a query sees keys of its
        own sequence only. They are the same in every row of the batch.
    slopes
        ALiBi: how much a token of distance lowers a head's logits. ``lse`` belongs to this form,
        0 at the query itself.
    bias
        Added to the scores; -inf hides a key. Any dim may be 1. Of shape (…, query, key) it is a
        matrix that the caller holds.
    sinks
        Logit of every head's learned sink, an outcome besides the keys. Weights then sum to less
        than 1 (``learned_sink_mass`` is the rest) and are left so; ``lse`` includes it, and
        ``entropy`` counts it as an outcome.
    sigmoid
        Weights are the sigmoid of each logit on its own. Rows sum to anything, so statistics of a
        distribution (``lse``, ``entropy``, ``distance``, ``distance_variance``) are refused.
    edits
        Interventions on the heads.

    References
    ----------
    Train Short, Test Long (ALiBi, Press et al. 2021). Gemma 2 (soft cap, 2024). gpt-oss model card
    (learned sinks, 2025). Theory, Analysis, and Best Practices for Sigmoid Self-Attention
    (Ramapuram et al. 2024).
    """

    scale: float | None = None
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    key_mask: Bool[Tensor, "batch key"] | None = None
    query_mask: Bool[Tensor, "batch query"] | None = None
    lengths: tuple[int, ...] | None = None
    slopes: Float[Tensor, " head"] | None = None
    bias: Float[Tensor, "_ _ _ _"] | None = None
    sinks: Float[Tensor, " head"] | None = None
    sigmoid: bool = False
    edits: WeightEdits | None = None

    def __post_init__(self) -> None:
        inputs.check_options(self.scale, self.window, self.softcap)
        if self.lengths is not None and (not self.lengths or min(self.lengths) < 1):
            raise InvalidInput(f"lengths: {self.lengths}; give 1 token or more for every sequence")
        if self.sigmoid and self.sinks is not None:
            raise InvalidInput(
                "sinks: a sink is an outcome of a softmax; leave it out with sigmoid"
            )

    def fit(self, q: Tensor, k: Tensor) -> "AttentionSpec":
        """Fit to the tensors of a call: fill in the scale and the queries that are padding."""
        (batch, heads, queries, size), keys = q.shape, k.shape[2]
        key_mask = inputs.check_mask("key_mask", self.key_mask, batch, keys)
        inputs.check_mask("query_mask", self.query_mask, batch, queries)
        query_mask = inputs.real_queries(q, k, self.causal, key_mask, self.query_mask)
        if self.lengths is not None and not queries == keys == sum(self.lengths):
            raise InvalidInput(
                f"lengths: {sum(self.lengths)} tokens in all, but there are {queries} queries and "
                f"{keys} keys; give the lengths of all packed sequences"
            )
        expect("slopes", self.slopes, ((heads,),))
        expect("sinks", self.sinks, ((heads,),))
        expect("bias", self.bias, ((1, batch), (1, heads), (1, queries), (1, keys)))
        if self.edits is not None:
            self.edits.check(batch, heads, queries, keys)

        def on_device(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(q.device)

        return replace(
            self,
            scale=size**-0.5 if self.scale is None else self.scale,
            key_mask=on_device(key_mask),
            query_mask=on_device(query_mask),
            slopes=on_device(self.slopes),
            bias=on_device(self.bias),
            sinks=on_device(self.sinks),
            edits=None if self.edits is None else self.edits.to(q.device),
        )

    @property
    def hides(self) -> bool:
        """Whether bias or edits may leave a row without any key."""
        return self.bias is not None or (self.edits is not None and self.edits.hides)

    def visibility(self, queries: int, keys: int, device: torch.device) -> Visibility:
        """Keys that each query sees, bias and edits aside."""
        return Visibility(
            queries,
            keys,
            self.causal,
            self.window,
            self.key_mask,
            self.query_mask,
            device,
            self.lengths,
        )


PLAIN = AttentionSpec()
"""Causal order and nothing else."""
