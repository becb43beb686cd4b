"""Vision models: pixels as prompts, patches as tokens."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.errors import InvalidInput, NotApplicable, UnsupportedModel
from headscope.probes.prompts.prompt_batch import Prompts

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# What models call the vectors that they put before the patches, in the order in which they stand.
BEFORE = {
    "cls_token": "[CLS]",
    "class_embedding": "[CLS]",
    "distillation_token": "[DIST]",
    "register_tokens": "[REG{}]",
}


def vision_tower(module: Any) -> Any:
    """Find the part of a model that turns pixels into hidden states, without a head on top."""
    # What some models call their base begins behind the embedding of the patches.
    for part in (module.base_model, module):
        parameters = inspect.signature(part.forward).parameters.values()
        if any(parameter.name == "pixel_values" for parameter in parameters):
            break
    more = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name != "pixel_values"
    ]
    if more:
        raise UnsupportedModel(
            f"model: {type(module).__name__} reads {', '.join(more)} beside pixel_values; refused"
        )
    return part


def patches(model: Model, height: int, width: int) -> tuple[str, ...]:
    """Return the names of an image's tokens: those before the patches, then row by row."""
    down, across = _pair(model, "patch_size")
    if height % down or width % across or not height * width:
        raise InvalidInput(
            f"prompts: an image of {height} × {width} pixels is not made of patches of "
            f"{down} × {across}"
        )
    before = []
    for part, word in BEFORE.items():
        for name, weight in model.module.named_parameters():
            if name.rpartition(".")[2] == part:
                count = weight.shape[-2] if weight.ndim > 1 else 1
                before += [word.format(number) for number in range(count)]
    rows, columns = range(height // down), range(width // across)
    return (*before, *(f"r{row}c{column}" for row in rows for column in columns))


def sample(model: Model) -> Float[Tensor, "1 channel height width"]:
    """Return an image to check a model on."""
    height, width = _pair(model, "image_size")
    channels = int(getattr(model.module.config, "num_channels", 3))
    steps = torch.arange(channels * height * width, dtype=torch.float64)
    # Waves of a length that patches do not share, so that they differ from each other.
    return torch.sin(0.37 * steps + 0.01 * steps.sqrt()).float().reshape(1, channels, height, width)


def check(model: Model, image: Float[Tensor, "1 channel height width"], length: int) -> None:
    """Refuse a model whose tokens are not those that we would name."""
    expected = patches(model, *image.shape[-2:])
    if len(expected) != length:
        raise UnsupportedModel(
            f"model: {model.architecture} makes {length} tokens of an image, and its patches and "
            f"special tokens are {len(expected)}; this architecture is refused"
        )


def read(model: Model, prompts: Any) -> Prompts:
    """Read images: arrays of floats (channel, height, width), files or PIL images."""
    file_or_picture = isinstance(prompts, str | os.PathLike) or _is_picture(prompts)
    single = file_or_picture or getattr(prompts, "ndim", 0) == 3
    listed = [prompts] if single else list(prompts)
    if not listed:
        raise InvalidInput("prompts: there are none; give at least one image")
    images = [_pixels(model, at, image) for at, image in enumerate(listed)]
    for at, image in enumerate(images):
        if image.shape != images[0].shape:
            raise InvalidInput(
                f"prompts: image {at + 1} is {_shape(image)} and image 1 is {_shape(images[0])}; "
                "give images of one size"
            )
    names = patches(model, *images[0].shape[-2:])
    ids = tuple(range(len(names)))
    return Prompts(ids=(ids,) * len(images), pixels=torch.stack(images), names=names)


def _pixels(model: Model, at: int, image: Any) -> Float[Tensor, "channel height width"]:
    if isinstance(image, str | os.PathLike):
        image = _open(at, image)
    if _is_picture(image):
        if model.processor is None:
            raise InvalidInput(
                f"prompts: image {at + 1} is a picture, which needs an image processor; "
                "load_model(..., tokenizer=processor), or give arrays of pixel_values"
            )
        inputs = model.processor(images=image.convert("RGB"), return_tensors="pt")
        image = inputs["pixel_values"][0]
    try:
        # A copy: what a run has on disk cannot be written to, which torch does not like.
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    except (TypeError, ValueError, RuntimeError):
        raise NotApplicable(
            f"prompts: image {at + 1} is a {type(image).__name__}; {model.architecture} reads "
            "images: give arrays (channel, height, width), files or PIL images"
        ) from None
    channels = int(getattr(model.module.config, "num_channels", 3))
    if pixels.ndim != 3 or pixels.shape[0] != channels:
        raise NotApplicable(
            f"prompts: image {at + 1} is {_shape(pixels)}; {model.architecture} reads images "
            f"(channel, height, width) with {channels} channels"
        )
    if not pixels.is_floating_point():
        raise InvalidInput(
            f"prompts: image {at + 1} holds {str(pixels.dtype).removeprefix('torch.')}; give "
            "floats as the model's image processor makes them (pixel_values)"
        )
    if not bool(torch.isfinite(pixels).all()):
        raise InvalidInput(f"prompts: image {at + 1} holds NaN or infinity")
    return pixels.detach().cpu().float()


def _open(at: int, path: str | os.PathLike[str]) -> Any:
    if not Path(path).is_file():
        raise InvalidInput(f"prompts: image {at + 1}: there is no file {os.fspath(path)}")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InvalidInput(
            "prompts: reading image files needs Pillow, which is not installed; pip install "
            "pillow, or give arrays of pixel_values"
        ) from error
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidInput(f"prompts: image {at + 1}: {os.fspath(path)} is no image") from error


def _is_picture(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "PIL"


def _pair(model: Model, field: str) -> tuple[int, int]:
    """Read a size of the config, which is one number for a square."""
    size = getattr(model.module.config, field, None)
    if size is None:
        raise UnsupportedModel(
            f"model: {model.architecture} names no {field}, so its patches are not known"
        )
    pair: Sequence[int] = (size, size) if isinstance(size, int) else tuple(size)
    return int(pair[0]), int(pair[1])


def _shape(pixels: Tensor) -> str:
    return " × ".join(map(str, pixels.shape)) or "a single number"
