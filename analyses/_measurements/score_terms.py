"""Take a score of a head apart: what was written at the query against what was at the key.

Before soft cap and position bias the score of a query and a key is bilinear in the residual stream
at the two positions, once the scales of the norms are frozen at what they are there. The stream is
the sum of the embeddings, what heads wrote and what else the layers before wrote, so the score is a
sum of one term for each pair of them and of the biases. Rotary embeddings turn queries and keys by
their positions, so the form between them hangs on the offset of the pair.

Source: Kamath et al., Tracing Attention Computation Through Feature Interactions (2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._measurements import residual_reads
from headscope.analyses._measurements.residual_writes import head_writes, streams, through
from headscope.analyses._measurements.score_sources import Parts, Source
from headscope.analyses._runtime.results import label, require
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.attention import projections as weights
from headscope.probes.attention import rotary

if TYPE_CHECKING:
    import xarray as xr

    from headscope.analyses._stats.bootstrap import Array
    from headscope.probes.models.model import Model

KEEP = ("q", "k", "z", "resid")
# By how much the terms may miss the score, as a share of ‖q‖ ‖k‖ · scale.
TOLERANCE, HALF = 1e-4, 5e-2
Head = tuple[int, int]


@dataclass(frozen=True)
class Side:
    """The map from the stream to a head's queries, or keys: ``(s · x @ basis + bias) @ factor``.

    The columns of basis over bias are orthonormal; s is the scale of the norm at the position.
    """

    basis: Float[Tensor, "residual direction"]
    bias: Float[Tensor, " direction"]
    factor: Float[Tensor, "direction size"]


@dataclass(frozen=True)
class Split:
    """The score of one query and one key, taken apart.

    Attributes
    ----------
    sources
        What wrote to the stream; the biases last.
    queries, keys
        What each source gives at the query and at the key, in the basis of the side.
    form
        What compares the two, with the scale of the attention and the frozen lengths.
    score
        The score that the model itself gives.
    size
        ‖q‖ ‖k‖ · scale, which rounding is measured by.
    factors
        By what q and k are multiplied behind their projections, where a norm divides them.
    """

    sources: tuple[Source, ...]
    queries: Float[np.ndarray, "source direction"]
    keys: Float[np.ndarray, "source direction"]
    form: Float[np.ndarray, "direction _"]
    score: float
    size: float
    factors: tuple[float, float]

    @cached_property
    def terms(self) -> Float[np.ndarray, "source source"]:
        """Return the term of each source at the query and each at the key; they sum to the score.

        The first axis is the query's.
        """
        return np.asarray(self.queries @ self.form @ self.keys.T)


class Scores:
    """The scores of the heads of a model, to be taken apart; its weights are read once.

    ``parts`` stand in for the heads that they split.
    """

    def __init__(self, model: Model, longest: int, parts: Parts | None = None) -> None:
        self.model, self.parts = model, parts
        self.weights = weights.read(model, ("q", "k", "o"))
        self.reads = residual_reads.reads(model, self.weights)
        self.writes = head_writes(model)
        self.rotations = rotary.read(model, longest)
        self.placed = _placed(model)
        self._sides: dict[tuple[Head, str], Side] = {}
        self._known: dict[tuple[Head, str, int], Tensor] = {}

    def sources(self, layer: int) -> tuple[Source, ...]:
        """List what writes to the stream before a layer, and the biases."""
        sources = [Source("embedding")] + [Source("position")] * self.placed
        for before in range(layer):
            if before in self.writes:
                sources += [Source("head", before, head) for head in self._whole(before)]
                parts = self._parts(before)
                sources += parts.sources if parts else ()
            sources.append(Source("rest", before))
        return (*sources, Source("bias"))

    def side(self, head: Head, part: str) -> Side:
        """Return how a head makes its queries (``q``) or keys (``k``)."""
        if (head, part) not in self._sides:
            layer, number = head
            read, projection = self.reads[layer], self.weights.projections[layer, part]
            row = number if part == "q" else self.group(number)
            weight = self.weights.of(layer, part)[row]
            shift = read.bias(len(weight)) @ weight
            if getattr(projection.module, "bias", None) is not None:
                bias: Any = projection.module.bias
                shift = shift + projection.apply(bias.detach().cpu())[row]
            whole = torch.cat([read.transposed(weight.T).T, shift[None]])
            basis, factor = torch.linalg.qr(whole)
            self._sides[head, part] = Side(basis[:-1], basis[-1], factor)
        return self._sides[head, part]

    def group(self, head: int) -> int:
        """Return the KV head of a query head."""
        return head // (self.model.heads // self.model.kv_heads)

    def vector(
        self, capture: xr.Dataset, prompt: int, at: int | slice, source: Source
    ) -> Float[Tensor, "*position residual"]:
        """Return what a source wrote to the stream at a position, or at several.

        The biases of a head's queries and keys write nothing to it.
        """
        prompt_data = capture.isel(prompt=prompt, query=at)
        if source.kind == "bias":
            raise InvalidInput("source: biases of a head are no part of the stream")
        layer = max(source.layer, 0)
        stream = _exact(prompt_data["resid"].isel(boundary=slice(layer, layer + 2)), "boundary")
        if source.kind in ("embedding", "position"):
            if not self.placed:
                return stream[0]
            token = _embedding(self.model, prompt_data["token_id"].values)
            return token if source.kind == "embedding" else stream[0] - token
        change = stream[1] - stream[0]
        if layer not in self.writes:
            return change
        z = _exact(prompt_data["z"].isel(layer=layer), "head")
        scale, outward = self._write_scale(layer, z), self._outward(layer)
        if source.kind == "head":
            return (z[source.head] @ outward[source.head]) * scale
        parts = self._parts(layer)
        if parts and source in parts.sources:
            part = parts.split(z)[parts.sources.index(source)]
            return torch.einsum("h...s,hsr->...r", part, outward[list(parts.heads)]) * scale
        return change - torch.einsum("h...s,hsr->...r", z, outward) * scale

    def split(self, capture: xr.Dataset, head: Head, prompt: int, query: int, key: int) -> Split:
        """Split the score of a query and a key of one prompt into its terms.

        ``capture`` keeps ``q``, ``k``, ``z`` and ``resid``.
        """
        require(capture, KEEP, "qk_attribution", ("self",))
        layer, number = head
        prompt_data = capture.isel(prompt=prompt)
        vectors, turned, factors = {}, {}, {}
        group = self.group(number)
        axes = {"q": {"head": number, "query": query}, "k": {"kv_head": group, "key": key}}
        for part, at in (("q", query), ("k", key)):
            side = self.side(head, part)
            vectors[part] = self._source_terms(prompt_data, head, part, at)
            turned[part] = self.rotations[layer].apply(side.factor.numpy(), at=at)
            summed = vectors[part].sum(0) @ turned[part]
            arrived = (
                prompt_data[part].isel({"layer": layer, **axes[part]}).values.astype(np.float64)
            )
            factors[part] = (summed @ arrived) / max(summed @ summed, 1e-300), arrived
        (query_factor, q), (key_factor, k) = factors["q"], factors["k"]
        scale = float(capture["logit_scale"].values[layer])
        form = turned["q"] @ turned["k"].T * (query_factor * key_factor * scale)
        split = Split(
            self.sources(layer), vectors["q"], vectors["k"], form, float(q @ k * scale),
            float(np.linalg.norm(q) * np.linalg.norm(k) * scale),
            (float(query_factor), float(key_factor)),
        )  # fmt: skip
        self._check(split, head)
        return split

    def _check(self, split: Split, head: Head) -> None:
        half = self.model.dtype in (torch.float16, torch.bfloat16)
        off = abs(float(split.terms.sum()) - split.score)
        if off > (HALF if half else TOLERANCE) * split.size:
            raise NotApplicable(
                f"model: the terms of a score of {label(head)} of {self.model.name} sum to "
                f"{split.terms.sum():.4g}, and the score is {split.score:.4g}; something between "
                "the residual stream and the score is not known"
            )

    def _source_terms(self, prompt_data: xr.Dataset, head: Head, part: str, at: int) -> Array:
        """Return the contribution of each source at a position, in the basis of a side."""
        layer, side = head[0], self.side(head, part)
        entered = _exact(prompt_data["resid"].isel(query=at, boundary=slice(layer + 1)), "boundary")
        scale = self.reads[layer].scale(self.model, entered[-1:])
        along = entered @ side.basis
        embedding = along[:1]
        if self.placed:
            token = _embedding(self.model, prompt_data["token_id"].values[at])
            embedding = torch.stack([token @ side.basis, along[0] - token @ side.basis])
        terms = [embedding]
        for before in range(layer):
            change = along[before + 1] - along[before]
            if before in self.writes:
                z = _exact(prompt_data["z"].isel(layer=before, query=at), "head")
                through, factor = self._through(head, part, before), self._write_scale(before, z)
                heads = torch.einsum("hs,hsd->hd", z, through) * factor
                terms.append(heads[self._whole(before)])
                parts = self._parts(before)
                if parts:
                    inward = through[list(parts.heads)]
                    terms.append(torch.einsum("phs,hsd->pd", parts.split(z), inward) * factor)
                change = change - heads.sum(0)
            terms.append(change[None])
        return np.asarray(torch.cat([torch.cat(terms) * scale, side.bias[None]]).numpy())

    def _parts(self, layer: int) -> Parts | None:
        return self.parts if self.parts is not None and layer == self.parts.layer else None

    def _whole(self, layer: int) -> list[int]:
        """List the heads of a layer that are not split into parts."""
        parts = self._parts(layer)
        return [head for head in range(self.model.heads) if not parts or head not in parts.heads]

    def _outward(self, layer: int) -> Float[Tensor, "head size residual"]:
        """Return how outputs of a layer's heads enter the stream, a norm's scale left out."""
        write = self.writes[layer]
        outward = self.weights.of(layer, "o") * write.factor
        return outward if write.norm is None else write.norm.linear(outward)

    def _through(self, head: Head, part: str, layer: int) -> Float[Tensor, "head size direction"]:
        """Return how outputs of a layer's heads enter the queries or keys of a head, likewise."""
        cached = self._known
        if (head, part, layer) not in cached:
            cached[head, part, layer] = self._outward(layer) @ self.side(head, part).basis
        return cached[head, part, layer]

    def _write_scale(self, layer: int, z: Float[Tensor, "head *position size"]) -> Tensor | float:
        """Return the frozen scale of a norm between a layer's heads and the stream."""
        write = self.writes[layer]
        if write.norm is None or write.module is None:
            return 1.0
        writes = torch.einsum("h...s,hsr->...r", z, self.weights.of(layer, "o"))
        module: Any = self.weights.projections[layer, "o"].module
        if getattr(module, "bias", None) is not None:
            writes = writes + module.bias.detach().double().cpu()
        flat = writes.reshape(-1, writes.shape[-1])
        scale = write.norm.scale(flat, through(write.module, self.model, flat))
        return scale.reshape(*writes.shape[:-1], 1)


def _exact(array: xr.DataArray, first: str) -> Tensor:
    return torch.from_numpy(array.transpose(first, ...).values.astype(np.float64))


def _embedding(model: Model, tokens: Any) -> Float[Tensor, "*position residual"]:
    """Return the embeddings of tokens."""
    module: Any = model.module
    with torch.no_grad():
        ids = torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=model.device)
        vectors: Tensor = module.get_input_embeddings()(ids)
    return vectors.double().cpu()


def _placed(model: Model) -> bool:
    """Return whether the stream begins as embedding of token plus embedding of position."""
    differences = []
    for start in (2, 5):
        ids = (torch.arange(5) * 3 + start).remainder(model.vocabulary)
        begins = streams(model, ids[None])[0][0]
        tokens = _embedding(model, ids)
        if tokens.shape != begins.shape:
            return False
        differences.append(begins - tokens)
    gap, size = (
        float(values.abs().max()) for values in (differences[0] - differences[1], differences[0])
    )
    return size > 0 and gap <= 1e-5 * size
