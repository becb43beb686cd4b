"""Group prompts into batches, padded where a test shows that it changes no number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.load_check import STATISTICS, prompt
from headscope.probes.prompts.prompt_batch import batches

if TYPE_CHECKING:
    from headscope.probes.attention.interface import AttentionCall
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

WASTE = 0.1
"""Largest share of a batch that is padding."""
EXACT, HALF = 1e-5, 1e-2
"""What padding may change of a number, of the largest where that is above 1."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def pad(
    model: Model, prompts: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"] | None]:
    """Fill prompts up on the right: token ids, and which are real; None where all are."""
    longest = max(map(len, prompts))
    filler = getattr(model.module.config.get_text_config(), "pad_token_id", None) or 0
    ids = torch.tensor([[*prompt, *[filler] * (longest - len(prompt))] for prompt in prompts])
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(longest) < lengths[:, None]


def grouped(
    model: Model, prompts: Prompts, tokens: int, *, alike: bool
) -> tuple[list[list[int]], str]:
    """Group prompts into batches, and say where they are padded: ``right``, or ``none``.

    Lengths in a batch differ where the model takes padding, unless they are to be alike.
    """
    ids = prompts.ids
    mixed = len({len(prompt) for prompt in ids}) > 1 and not alike and model.attention == "self"
    waste = WASTE if mixed and takes_padding(model) else 0.0
    groups = list(batches(ids, tokens, prompts.sources, waste))
    shared = any(len({len(ids[row]) for row in rows}) > 1 for rows in groups)
    return groups, "right" if waste and shared else "none"


def takes_padding(model: Model) -> bool:
    """Tell whether padding on the right leaves every number of a model as it was; asked once.

    A short and a longer prompt run together and alone. Hidden states and statistics must agree to
    1e-5, in half precision to 1e-2.
    """
    if model.module not in _known:
        _known[model.module] = _try(model)
    return _known[model.module]


def _try(model: Model) -> bool:
    made = prompt(model)
    assert isinstance(made, Tensor)  # only such models are asked
    long = made[0].tolist()
    short = long[: len(long) // 2 + 1]
    if short == long:
        return False
    half = model.dtype in (torch.float16, torch.bfloat16)
    try:
        with torch.no_grad():
            together = _numbers(model, [short, long], len(short))
            alone = _numbers(model, [short], len(short))
    except HeadscopeError:
        return False
    return all(
        _agree(padded, expected, HALF if half else EXACT)
        for padded, expected in zip(together, alone, strict=True)
    )


def _numbers(model: Model, prompts: Sequence[Sequence[int]], length: int) -> list[Tensor]:
    """Run prompts together; hidden states and statistics of the first."""
    numbers: list[Tensor] = []

    def take(call: AttentionCall, outputs: dict[str, Tensor], z: Tensor) -> None:
        numbers.extend(outputs[name][0, :, :length].double().cpu() for name in STATISTICS)

    ids, mask = pad(model, prompts)
    reader = Reader(Request(stats=STATISTICS), (), take)
    hidden = run(model, ids, reader, head=False, mask=mask)
    return [hidden[0, :length].double().cpu(), *numbers]


def _agree(padded: Tensor, expected: Tensor, tolerance: float) -> bool:
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    return bool(((padded - expected).abs() <= allowed).all())
