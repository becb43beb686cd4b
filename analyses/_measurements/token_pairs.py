"""What a head's weights say of tokens alone: what each promotes (OV) and attends to (QK).

The residual stream that a token brings to the first block, alone and at the first position, is put
before the block of the head; what arrives there as query, key and value is the token's. A value
through the output projection, the final norm and the unembedding (as in `vocabulary`) gives the
tokens that the head promotes where it attends to the token. The product of query and key, scaled,
is the logit of one token that attends to another at the same position, without what earlier blocks
add.

Source: Elhage et al., A Mathematical Framework for Transformer Circuits (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._measurements.unembedding import final_norm, read_out
from headscope.kernels.api import Request
from headscope.kernels.errors import InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.attention import projections
from headscope.probes.attention.forward import Reader
from headscope.probes.attention.forward import call as call_model
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.attention.residual_stream import watching
from headscope.probes.models.encoder_decoder import SELF

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

BLOCK = 4096
"""Tokens that go through the layer at once."""
CELLS = 2**24
"""Logits of tokens with the whole vocabulary that are held at once."""

Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Pairs:
    """For each of some tokens the others of the largest logits, dims token and rank."""

    tokens: NDArray[np.int64]
    others: NDArray[np.int64]
    logits: NDArray[np.float32]

    def largest(self, count: int) -> list[tuple[int, int, float]]:
        """List the pairs of the largest logits."""
        order = np.argsort(-self.logits, axis=None, kind="stable")[:count]
        rows, ranks = np.unravel_index(order, self.logits.shape)
        columns = self.tokens[rows], self.others[rows, ranks], self.logits[rows, ranks]
        return [
            (int(token), int(other), float(logit))
            for token, other, logit in zip(*columns, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Query, key and value of tokens at one head, each token alone at the first position."""

    query: Float[Tensor, "token size"]
    key: Float[Tensor, "token size"]
    value: Float[Tensor, "token value_size"]
    scale: float
    softcap: float | None


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass that has done its work
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@torch.no_grad()
def vectors(model: Model, layer: int, head: int, tokens: Sequence[int]) -> Vectors:
    """Read what tokens bring to a head by themselves, in float32."""
    if model.attention != SELF or model.reads != "tokens":
        raise NotApplicable(
            f"model: tokens alone are read from one text, and {model.name} has {model.attention} "
            f"attention and reads {model.reads}"
        )
    if layer not in model.geometry.attending:
        raise InvalidInput(f"layer: {layer} has no attention map")
    group = head * model.kv_heads // model.heads
    parts: list[list[Tensor]] = []
    for start in range(0, len(tokens), BLOCK):
        call = _arrived(model, layer, tokens[start : start + BLOCK])
        projected = (call.query[:, head, 0], call.key[:, group, 0], call.value[:, group, 0])
        parts.append([part.float().cpu() for part in projected])
    query, key, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return Vectors(query, key, value, call.scale, call.softcap)


def promoted(
    model: Model, layer: int, head: int, projected: Vectors, tokens: Sequence[int], k: int,
    report: Report | None = None,
) -> Pairs:  # fmt: skip
    """Find the k tokens that a head promotes most where it attends to each of some tokens."""
    projection = projections.read(model, ("o",)).of(layer, "o")[head].float()
    left, right, constant = _readable(model, projected.value @ projection)
    return largest(tokens, left, right, constant, k, report)


def attended_keys(
    queries: Vectors, tokens: Sequence[int], keys: Vectors, k: int, report: Report | None = None
) -> Pairs:
    """Find the k tokens, by their indices among the keys, that query tokens attend to most."""
    pairs = largest(tokens, queries.query * queries.scale, keys.key.T, torch.zeros(()), k, report)
    if queries.softcap is None:
        return pairs
    return replace(pairs, logits=queries.softcap * np.tanh(pairs.logits / queries.softcap))


@torch.no_grad()
def values(
    model: Model, layer: int, tokens: Sequence[int], weights: projections.Weights
) -> Float[Tensor, "kv_head token value_size"]:
    """Read the values of tokens at a layer, without bias, each behind the MLP of the first block.

    In the first layer tokens stand as they enter it.
    """
    if model.attention != SELF or model.reads != "tokens":
        raise NotApplicable(f"model: {model.name} does not read one text; relations are of one")
    projection = weights.projections[layer, "v"]
    bias = getattr(projection.module, "bias", None)
    parts = []
    for start in range(0, len(tokens), BLOCK):
        call = _arrived(model, layer, tokens[start : start + BLOCK], behind_mlp=layer > 0)
        parts.append(call.value[:, :, 0].double().cpu())
    value = torch.cat(parts).transpose(0, 1)
    return value if bias is None else value - projection.apply(bias.detach().cpu())[:, None]


def _arrived(
    model: Model, layer: int, tokens: Sequence[int], *, behind_mlp: bool = False
) -> AttentionCall:
    """Feed embedded tokens to a layer directly, and return its attention call.

    Behind the MLP, they are what the first block adds to them with its attention at zero.
    """
    reader = Reader(Request(stats=()))
    entered: list[Tensor] = []

    def receive(call: AttentionCall) -> Tensor:
        if call.layer == layer and entering is not None:
            raise _Reached(call)
        output = reader(call)
        return torch.zeros_like(output) if entering is None else output

    def stop(boundary: int, stream: Tensor) -> Tensor | None:
        entered.append(stream)
        if boundary == int(behind_mlp):
            raise _Reached(stream - entered[0] if behind_mlp else stream)
        return None

    def swap(boundary: int, stream: Tensor) -> Tensor | None:
        # The earlier blocks have seen one token, the layer sees all of them, each by itself.
        return entering if boundary == layer else None

    ids = torch.tensor(tokens)[:, None]
    entering: Tensor | None = None
    entering = _until(model, ids, stop, receive)
    arrived: AttentionCall = _until(model, ids[:1], swap, receive)
    return arrived


def _until(model: Model, ids: Tensor, take: Any, receive: Any) -> Any:
    try:
        with intercept_attention(model, receive), watching(model, take):
            call_model(model, ids, head=False)
    except _Reached as reached:
        return reached.value
    raise UnsupportedModel(f"model: {model.name} asked for no attention; refused")


def _readable(model: Model, outputs: Float[Tensor, "token residual"]) -> tuple[Tensor, ...]:
    """Return factors whose product, and a constant, are the logits that `read_out` gives.

    What a head writes has few dimensions, after the final norm too, so the vocabulary is
    multiplied with those alone.
    """
    embedding: Any = cast(Any, model.module).get_output_embeddings()
    if len(outputs) <= outputs.shape[1] or embedding is None:
        logits = read_out(model, outputs)  # refuses a model without an unembedding
        return logits, torch.empty(0), torch.empty(0)
    with torch.no_grad():
        normed = final_norm(model)(outputs.to(model.device, model.dtype)).float().cpu()
        centre = normed.mean(0)
        sample = normed[:: max(1, len(normed) // 2048)] - centre
        _, sizes, basis = torch.linalg.svd(sample, full_matrices=False)
        basis = basis[sizes > 1e-5 * sizes[0]]
        shares = (normed - centre) @ basis.T
        if (shares @ basis + centre - normed).abs().max() > 1e-3 * normed.abs().max():
            shares, basis, centre = normed, torch.eye(normed.shape[1]), torch.zeros_like(centre)

        def unembed(rows: Tensor) -> Tensor:
            return torch.as_tensor(embedding(rows.to(model.device, model.dtype))).float().cpu()

        constant = unembed(centre)
        right = unembed(basis) - unembed(torch.zeros_like(centre))
    return shares, right, constant


def largest(
    tokens: Sequence[int], left: Tensor, right: Tensor, constant: Tensor, k: int,
    report: Report | None = None,
) -> Pairs:  # fmt: skip
    """Find the k largest logits of each row, some rows at once."""
    others, logits = [], []
    whole = not right.numel()
    width = left.shape[1] if whole else right.shape[1]
    rows = max(1, CELLS // width)
    for start in range(0, len(left), rows):
        if report is not None:
            report(start, len(left))
        part = left[start : start + rows]
        best = (part if whole else part @ right + constant).topk(min(k, width))
        others.append(best.indices)
        logits.append(best.values)
    return Pairs(np.asarray(tokens), torch.cat(others).numpy(), torch.cat(logits).numpy())
