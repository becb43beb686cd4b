"""Products with attention matrices, panel by panel: no N×N matrix, at any length.

Rollout, flow routes and gradient-weighted relevance of a few output positions are a few rows, taken
through the matrices of all layers one after the other. Each step needs q and k of its layer, and
memory linear in the text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels import inputs
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.errors import InvalidInput
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.plan import Part
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.panels.scores import narrow
from headscope.kernels.part_total import Total
from headscope.kernels.weight_edits import expect

Step = Callable[[Tensor, Panel, Tensor], tuple[slice, Tensor]]
"""From the weights of a panel and the vectors of its heads, a term and its slice."""


@dataclass(frozen=True, eq=False)
class Gradient:
    """Makes of each weight P the product P ∘ ∂L/∂P, the link's share in the gradient of L.

    The gradient of L in the weight of query i on key j is dz_i · v_j, times the head's gate where
    edits have one.

    Parameters
    ----------
    v
        Values.
    dz
        Gradient of L in the head's output ``z``, as autograd gives it: units of L per unit of
        activation.
    positive
        Whether links of negative share count as 0.
    relevance
        A second gradient in ``z``, such as that under the rules of LRP: the weight is then
        P ∘ ∂L/∂P times relevance_i · v_j.

    References
    ----------
    Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers (Chefer et al. 2021). Transformer Interpretability Beyond Attention Visualization
    (Chefer et al. 2021) for the second.

    Examples
    --------
    >>> q = torch.zeros(1, 1, 2, 1)
    >>> v = torch.tensor([3.0, -1.0]).view(1, 1, 2, 1)
    >>> r = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    >>> push(r, q, q, gradient=Gradient(v, torch.ones(1, 1, 2, 1))).flatten()
    tensor([1.5000, 0.0000])
    """

    v: Float[Tensor, "batch kv_head key value_size"]
    dz: Float[Tensor, "batch head query value_size"]
    positive: bool = True
    relevance: Float[Tensor, "batch head query value_size"] | None = None


def pull(
    x: Float[Tensor, "batch _ key vector"],
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    spec: AttentionSpec = PLAIN,
    *,
    heads: Float[Tensor, " head"] | None = None,
    gradient: Gradient | None = None,
) -> Float[Tensor, "batch _ query vector"]:
    """Multiply attention matrices by vectors over the keys, A x: queries average what keys hold.

    A is the weights as ``attend`` has them; a gate on ``z`` is no part of it.

    Parameters
    ----------
    x
        Vectors over the keys, any number at once; one head is for all heads alike. What padding
        holds does not matter.
    q, k, spec
        As in ``attend``.
    heads
        Factor of each head in the sum over heads that is returned, 1/head for their mean; None
        keeps the heads apart.
    gradient
        Multiplies each weight by its gradient; None leaves the weights as they are.

    Returns
    -------
    A x in float32, in the units of x, times those of L with a gradient; one head if ``heads`` is
    given. 0 at queries that are padding or see no key.

    References
    ----------
    Quantifying Attention Flow in Transformers (Abnar and Zuidema 2020). Information Flow Routes
    (Ferrando and Voita 2024).

    Examples
    --------
    >>> q = torch.zeros(1, 1, 3, 4)
    >>> pull(torch.tensor([3.0, 6.0, 9.0]).view(1, 1, 3, 1), q, q).flatten()
    tensor([3.0000, 4.5000, 6.0000])
    """
    call = Product.of(q, k, spec, heads, gradient)
    x = call.take("x", x, "key", call.panels.spec.key_mask)

    def step(weights: Tensor, panel: Panel, x: Tensor) -> tuple[slice, Tensor]:
        return panel.queries, weights @ x[:, :, panel.keys]

    return call.run(step, x, q.shape[2])


def push(
    r: Float[Tensor, "batch _ query vector"],
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    spec: AttentionSpec = PLAIN,
    *,
    heads: Float[Tensor, " head"] | None = None,
    gradient: Gradient | None = None,
) -> Float[Tensor, "batch _ key vector"]:
    """Multiply vectors over the queries by attention matrices, rᵀ A: the relevance of each key.

    The step of rollout and relevance from the output of a layer to its input. Panels of queries
    that hold nothing are not computed.

    Parameters
    ----------
    r
        Vectors over the queries, any number at once; one head is for all heads alike. What padding
        holds does not matter.
    q, k, spec, heads, gradient
        As in ``pull``.

    Returns
    -------
    rᵀ A in float32, in the units of r, times those of L with a gradient; one head if ``heads`` is
    given. 0 at padding.

    References
    ----------
    As ``pull``; Generic Attention-model Explainability (Chefer et al. 2021) for the gradient.

    Examples
    --------
    >>> q = torch.zeros(1, 1, 3, 4)
    >>> push(torch.tensor([0.0, 6.0, 9.0]).view(1, 1, 3, 1), q, q).flatten()
    tensor([6., 6., 3.])
    """
    call = Product.of(q, k, spec, heads, gradient)
    valid_queries = call.panels.visibility.valid_queries
    r = call.take("r", r, "query", None if bool(valid_queries.all()) else valid_queries)
    nonzero = (r != 0).any(dim=3).flatten(0, 1).any(dim=0)
    call = replace(call, panels=replace(call.panels, query_mask=nonzero))

    def step(weights: Tensor, panel: Panel, r: Tensor) -> tuple[slice, Tensor]:
        return panel.keys, weights.mT @ r[:, :, panel.queries]

    return call.run(step, r, k.shape[2])


@dataclass(frozen=True, eq=False)
class Product:
    """A product with the matrices of one attention call."""

    panels: Panels
    heads: Tensor | None
    factors: tuple[Tensor, ...]
    positive: bool

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        spec: AttentionSpec,
        heads: Tensor | None,
        gradient: Gradient | None,
    ) -> "Product":
        """Check the operands of a product."""
        # Without a gradient no values are needed: theirs is a size of 0.
        v = k[..., :0] if gradient is None else gradient.v
        inputs.check_tensors(q, k, k if gradient is None else v, inputs.DTYPES)
        expect("heads", heads, ((q.shape[1],),))
        panels = Panels(q, k, v, spec.fit(q, k))
        refuse_gradients(q=q, k=k, v=v, heads=heads)
        if gradient is None:
            return cls(panels, heads, (), False)
        sizes = tuple((size,) for size in (*q.shape[:3], v.shape[3]))
        factors = []
        for name, factor in (("dz", gradient.dz), ("relevance", gradient.relevance)):
            if factor is None:
                continue
            expect(name, factor, sizes)
            refuse_gradients(**{name: factor})
            hidden = ~panels.visibility.valid_queries[:, None, :, None]
            factors.append(factor.float().masked_fill(hidden, 0.0))
        edits = panels.spec.edits
        if edits is not None and edits.gate is not None:
            factors = [factor * edits.gate[:, :, None, None] for factor in factors]
        return cls(panels, heads, tuple(factors), gradient.positive)

    def take(self, name: str, vectors: Tensor, side: str, mask: Tensor | None) -> Tensor:
        """Check vectors, and blank what padding holds."""
        q, k = self.panels.q, self.panels.k
        length = q.shape[2] if side == "query" else k.shape[2]
        if vectors.ndim != 4 or 0 in vectors.shape or not vectors.is_floating_point():
            raise InvalidInput(
                f"{name}: {vectors.dtype} {tuple(vectors.shape)}; give floats "
                f"(batch, head or 1, {side}, vector)"
            )
        expect(name, vectors, ((len(q),), (1, q.shape[1]), (length,), (vectors.shape[3],)))
        refuse_gradients(**{name: vectors})
        vectors = vectors.to(q.device, torch.float32)
        # 0 · NaN is NaN: what padding holds must not reach the product.
        return vectors if mask is None else vectors.masked_fill(~mask[:, None, :, None], 0.0)

    def run(self, step: Step, vectors: Tensor, length: int) -> Tensor:
        """Run the step in every panel, and combine the terms."""
        panels = self.panels
        batch, heads = panels.q.shape[:2]
        count = heads if self.heads is None else 1
        result = torch.zeros(batch, count, length, vectors.shape[3], device=panels.q.device)
        total = Total(result, self.heads is not None)

        def work(part: Part, filled: Iterator[Panel]) -> None:
            part_vectors = narrow(vectors, part.batch, part.heads)
            target = total.allocate(part)
            for panel in filled:
                where, term = step(self.weigh(panel, part), panel, part_vectors)
                if self.heads is not None:
                    term = (term * self.heads[part.heads, None, None]).sum(dim=1, keepdim=True)
                target[:, :, where] += term
            total.add(part, target)

        # Without a query that holds anything there is no panel at all.
        if panels.blocks:
            # Autocast would make products coarser than the inputs.
            with torch.no_grad(), torch.autocast(panels.q.device.type, enabled=False):
                panels.for_each_part(work)
        return result

    def weigh(self, panel: Panel, part: Part) -> Tensor:
        """Multiply the weights of a panel by their gradients, if there are any."""
        if not self.factors:
            return panel.weights
        shares = panel.weights
        for factor in self.factors:
            # Query heads that share a KV head are rows of one product: V is never expanded.
            rows = factor[part.batch, part.heads, panel.queries]
            rows = rows.reshape(len(panel.values), -1, rows.shape[-1])
            # A second product finds the scratch in use.
            if shares is panel.weights:
                out = panel.scratch.view(*rows.shape[:2], -1)
                torch.bmm(rows, panel.values.mT, out=out)
                shares = panel.scratch.mul_(panel.weights)
            else:
                shares.mul_(torch.bmm(rows, panel.values.mT).view_as(shares))
        return shares.clamp_min_(0.0) if self.positive else shares


def refuse_gradients(**tensors: Tensor | None) -> None:
    """Refuse tensors that need a gradient: none would reach them."""
    for name, tensor in tensors.items():
        if torch.is_grad_enabled() and tensor is not None and tensor.requires_grad:
            raise InvalidInput(
                f"{name}: products keep no gradient; detach it, or call them under torch.no_grad()"
            )
