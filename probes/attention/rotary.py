"""Find the rotary position embedding of a model: channel pairs and frequencies.

The pairs of channels that turn together and their frequencies are read from the model and checked:
random numbers in place of what its projections make, turned by them, arrive at the attention.

Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable, UnsupportedModel
from headscope.probes.attention import projections as weights
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.interface import AttentionCall

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

LENGTH = 24
# Kinds of frequencies that change with the length of the text, beyond the original context.
CHANGING = ("dynamic", "longrope")


@dataclass(frozen=True)
class Rotation:
    """The rotation of the queries and keys of one layer by position.

    Attributes
    ----------
    pairs
        Channels that turn together, dims pair, 2; none where nothing turns.
    frequencies
        Radians a token, by pair.

    Examples
    --------
    >>> import numpy as np
    >>> quarter = Rotation(np.array([[0, 1]]), np.array([np.pi / 2]))
    >>> quarter.undo(np.array([[1.0, 0.0], [0.0, 1.0]])).round(6).tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    pairs: Int[np.ndarray, "pair 2"]
    frequencies: Float[np.ndarray, " pair"]

    @property
    def wavelengths(self) -> NDArray[np.float64]:
        """Tokens that a full turn takes, by pair; infinite where the frequency is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(2 * np.pi / self.frequencies)

    def undo(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Undo the rotation of vectors; their last dims are position, from 0, and channel."""
        return self.apply(vectors, -1.0)

    def apply(
        self, vectors: NDArray[Any], sign: float = 1.0, at: int | None = None
    ) -> NDArray[np.float64]:
        """Rotate vectors, or with sign -1 back; their last dims are position, from 0, and channel.

        With ``at`` all of them stand at that position.
        """
        turned = np.array(vectors, dtype=np.float64)
        positions = np.arange(turned.shape[-2]) if at is None else np.full(turned.shape[-2], at)
        angles = sign * positions[:, None] * self.frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = (turned[..., self.pairs[:, side]] for side in (0, 1))
        turned[..., self.pairs[:, 0]] = first * cos - second * sin
        turned[..., self.pairs[:, 1]] = second * cos + first * sin
        return turned


NONE = Rotation(np.zeros((0, 2), dtype=np.int64), np.zeros(0))


def read(model: Model, length: int = LENGTH) -> dict[int, Rotation]:
    """Find the rotation of every layer with an attention map, and check it on a short prompt.

    ``length`` is that of the longest text that it is meant for, in tokens; frequencies that have
    changed at this length are refused.

    Returns
    -------
    By layer; without pairs where positions do not turn the queries and keys.

    Examples
    --------
    >>> from headscope.probes import load_model
    >>> rotations = read(load_model("headscope/bundled"))
    >>> rotations[0].pairs[0].tolist(), round(float(rotations[0].wavelengths[0]), 3)
    ([0, 16], 6.283)
    """
    _refuse_changing(model, length)
    projections = weights.read(model, ("q", "k")).projections
    unrotated: dict[tuple[int, str], Tensor] = {}
    rotated: dict[tuple[int, str], Tensor] = {}

    generator = torch.Generator().manual_seed(0)

    def swap(keys: list[tuple[int, str]], module: nn.Module, args: Any, result: Tensor) -> Tensor:
        numbers = torch.randn(result.shape, generator=generator)
        for key in keys:
            unrotated[key] = projections[key].apply(numbers)[0].transpose(0, 1)
        return numbers.to(result)

    def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        for part, vectors in (("q", call.query), ("k", call.key)):
            rotated[call.layer, part] = vectors[0].detach().double().cpu()

    count = min(LENGTH, model.context or LENGTH)
    ids = ((7 * torch.arange(count) + 3) % model.vocabulary)[None]
    users: dict[nn.Module, list[tuple[int, str]]] = {}
    for key, projection in projections.items():
        users.setdefault(projection.module, []).append(key)
    with torch.no_grad(), ExitStack() as stack:
        for module, keys in users.items():
            stack.enter_context(module.register_forward_hook(partial(swap, keys)))
        run(model, ids, Reader(Request(stats=()), take=take), head=False)
    tolerance = 5e-2 if model.dtype in (torch.float16, torch.bfloat16) else 1e-3
    rotations = {}
    for layer in model.geometry.attending:
        pairs = [
            (_unit(unrotated[layer, part]), _unit(rotated[layer, part])) for part in ("q", "k")
        ]
        rotations[layer] = _only(model, layer, pairs, tolerance)
    return rotations


def _only(
    model: Model,
    layer: int,
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    tolerance: float,
) -> Rotation:
    for candidate in _candidates(model):
        gaps = [np.abs(candidate.apply(vectors) - expected).max() for vectors, expected in pairs]
        if max(gaps) <= tolerance:
            return candidate
    raise UnsupportedModel(
        f"model: no known rotation turns the queries and keys of layer {layer} of {model.name} "
        f"({model.architecture}) into what arrives at its attention"
    )


def _candidates(model: Model) -> Iterator[Rotation]:
    """Yield no rotation, then those that the model's frequencies allow."""
    yield NONE
    size = model.head_size
    for name, buffer in model.module.named_buffers():
        last = name.rpartition(".")[2]
        if not last.endswith("inv_freq") or "original" in last:
            continue
        frequencies = buffer.detach().double().cpu().numpy()
        if 2 * len(frequencies) <= size:
            yield from _cuts(frequencies)
    # Older code holds tables of sines, as in the paper, and no frequencies.
    turned = getattr(model.module.config.get_text_config(), "rotary_dim", None) or size
    yield from _cuts(10000.0 ** (-np.arange(0, turned, 2) / turned))


def _cuts(frequencies: NDArray[np.float64]) -> Iterator[Rotation]:
    """Yield the known ways to pair channels: the first half with the second, or neighbours."""
    count = len(frequencies)
    channels = np.arange(2 * count)
    yield Rotation(channels.reshape(2, count).T, frequencies)
    yield Rotation(channels.reshape(count, 2), frequencies)


def _unit(vectors: Tensor) -> NDArray[np.float64]:
    """Divide by the length, which a norm or a scaled rotation may have set."""
    return np.asarray((vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-30)).numpy())


def _refuse_changing(model: Model, length: int) -> None:
    config = model.module.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    groups = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for group in groups:
        original = group.get("original_max_position_embeddings") or model.context or length
        if group.get("rope_type") in CHANGING and length > original:
            raise NotApplicable(
                f"rope_parameters: the {group['rope_type']} frequencies of {model.name} change "
                f"beyond {original} tokens; give shorter prompts than {length} tokens"
            )
