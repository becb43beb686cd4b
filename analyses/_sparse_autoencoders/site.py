"""Where a sparse autoencoder reads and writes: the head outputs z of a layer, or of one head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.api import Request
from headscope.kernels.errors import InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.attention import forward
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.interventions.base import check_heads
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.models.model import Geometry, Model

# Tokens in one pass of the model; more gain little time on a processor and take memory.
TOKENS = 2048


@dataclass(frozen=True)
class Site:
    """The outputs of the heads of a layer, one after another, or of one ``head`` alone.

    >>> Site(3).hook_name, Site(3).width(heads=4, size=16), Site(3, head=1).width(4, 16)
    ('blocks.3.attn.hook_z', 64, 16)
    """

    layer: int
    head: int | None = None

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the hook point."""
        return f"blocks.{self.layer}.attn.hook_z"

    def __str__(self) -> str:
        return f"layer {self.layer}" if self.head is None else f"L{self.layer}H{self.head}"

    def width(self, heads: int, size: int) -> int:
        """Return the length of a vector, with heads of some size."""
        return size if self.head is not None else heads * size

    def heads(self, count: int) -> list[int]:
        """List the heads whose outputs a vector holds, in order."""
        return list(range(count)) if self.head is None else [self.head]

    def check(self, shape: Geometry) -> None:
        """Refuse a layer or head that a model does not have."""
        check_heads("sae", [(self.layer, self.head or 0)], shape)

    def gather(self, z: Float[Tensor, "batch head query size"]) -> Float[Tensor, "batch query _"]:
        """Return a vector a token."""
        chosen = z if self.head is None else z[:, self.head : self.head + 1]
        return chosen.transpose(1, 2).flatten(2)

    def scatter(
        self, z: Float[Tensor, "batch head query size"], vectors: Float[Tensor, "batch query _"]
    ) -> Float[Tensor, "batch head query size"]:
        """Return the outputs of all heads with the vectors in their place."""
        batch, queries, _ = vectors.shape
        split = vectors.view(batch, queries, -1, z.shape[-1]).transpose(1, 2).to(z)
        if self.head is None:
            return split
        return torch.cat([z[:, : self.head], split, z[:, self.head + 1 :]], 1)


class _ReachedError(Exception):
    """The layer has been computed, and no later one is needed."""


@torch.no_grad()
def vectors(
    model: Model, ids: Int[Tensor, "batch position"], site: Site
) -> Float[Tensor, "batch position _"]:
    """Run the model up to a layer, and return its head outputs in float32."""
    outputs: list[Tensor] = []

    def receive(call: AttentionCall) -> Tensor:
        z = call.attend(Request(stats=()))["z"]
        if call.layer == site.layer:
            outputs.append(site.gather(z).float().cpu())
            raise _ReachedError
        return z

    with suppress(_ReachedError), intercept_attention(model, receive):
        forward.call(model, ids, head=False)
    if not outputs:
        raise UnsupportedModel(f"model: layer {site.layer} of {model.name} asked for no attention")
    if not bool(torch.isfinite(outputs[0]).all()):
        raise InvalidInput(f"model: {model.name} gives NaN or infinite numbers; check its weights")
    return outputs[0]


def stream(
    model: Model, prompts: Sequence[Sequence[int]], site: Site, first: int = 0
) -> Iterator[tuple[list[int], Float[Tensor, "batch position _"]]]:
    """Yield rows of prompts of one length with their vectors, from some batch on."""
    site.check(model.geometry)
    for rows in islice(batches(prompts, TOKENS), first, None):
        yield rows, vectors(model, torch.tensor([list(prompts[row]) for row in rows]), site)


def cut(model: Model, prompts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Split prompts into pieces of ``length`` tokens, each opened as the tokenizer opens a text.

    A prompt that is shorter is one piece; what is left behind those of a longer one is dropped.
    """
    opening = model.encode("") if model.tokenizer is not None else []
    pieces = []
    for ids in prompts:
        opened = bool(opening) and list(ids[: len(opening)]) == opening
        body, start = (list(ids[len(opening) :]), opening) if opened else (list(ids), [])
        step = max(1, length - len(start))
        whole = [body[at : at + step] for at in range(0, len(body) - step + 1, step)]
        pieces += [[*start, *part] for part in whole or [body]]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise NotApplicable("prompts: none has 2 tokens; give longer ones")
    return pieces
