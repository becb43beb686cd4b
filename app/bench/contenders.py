"""Contenders: headscope and what people use instead, from the same queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headscope.app.bench.clock import Call
from headscope.kernels import attention
from headscope.kernels.api import Request
from headscope.kernels.errors import HeadscopeError, InvalidInput

COLUMNS: dict[str, tuple[str, ...]] = {
    "rows": ("lse", "max_weight"),
    "entropy": ("entropy", "first_mass"),
    "columns": ("received", "pooled_mean"),
    "histogram": ("distance_hist",),
    "top8": ("topk", "topk_key"),
}
"""Statistics that each column of the benchmark adds to those before it; ``z`` is in all."""

ENGINES: dict[str, Any] = {"headscope": "auto", "panels": "panels"}
"""Engines of ``attend`` by the name of the contender."""

CAPTURES = tuple(f"{engine}/{column}" for engine in ENGINES for column in COLUMNS)
OTHERS = ("eager", "eager_statistics", "bridge")
FLEX = ("flex_aux", "flex")
"""In this order: where the first cannot be compiled, whatever was compiled before would run eagerly
from then on, with N×N matrices and without a word."""
ATTENTION = ("sdpa", *CAPTURES, *OTHERS)
SIZE = 64
TILES = 64

Result = dict[str, Tensor]


def attention_inputs(length: int, heads: int, sigma: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw q, k and v (1, head, token, 64); logits have the standard deviation ``sigma``."""
    draw = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, heads, length, SIZE, generator=draw) for _ in range(3))
    return q * sigma, k, v


def cumulated(column: str) -> tuple[str, ...]:
    """List the statistics of a column, with those of the columns before it.

    Examples
    --------
    >>> cumulated("entropy")
    ('lse', 'max_weight', 'entropy', 'first_mass')
    """
    upto = list(COLUMNS).index(column) + 1
    return tuple(name for stats in list(COLUMNS.values())[:upto] for name in stats)


def request(length: int, column: str = "top8") -> Request:
    """Ask for the statistics of a column, with 64 tiles from 1024 tokens on and the 8 top keys."""
    return Request(stats=cumulated(column), tile=max(length // TILES, 16), k=8)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Result:
    """Attend with torch's fused attention, which tells nothing of the weights."""
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return {"z": mixed}


def capture(q: Tensor, k: Tensor, v: Tensor, engine: Any, column: str) -> Result:
    """Attend with the statistics of a column."""
    return attention.attend(q, k, v, request(q.shape[2], column), engine=engine)


def compiled() -> bool | str:
    """Tell whether the engine ``auto`` is the compiled one on this machine, else why not."""
    try:
        capture(*attention_inputs(16, 1), engine="compiled", column="rows")
    except HeadscopeError as reason:
        return str(reason)
    return True


def eager(q: Tensor, k: Tensor, v: Tensor) -> Result:
    """Attend as Hugging Face's eager attention does: product, mask, softmax, product."""
    return {"z": _eager(q, k, v)[2]}


def eager_statistics(q: Tensor, k: Tensor, v: Tensor) -> Result:
    """Attend eagerly, then compute every statistic of the benchmark from the whole matrix."""
    scores, weights, z = _eager(q, k, v)
    length = q.shape[2]
    wanted = request(length)
    tile = wanted.tile
    tiles = -(-length // tile)
    columns = torch.nn.functional.pad(weights, (0, tiles * tile - length))
    pooled = torch.unflatten(columns, 3, (tiles, tile)).sum(dim=4)
    rows = torch.nn.functional.pad(pooled, (0, 0, 0, tiles * tile - length))
    sizes = torch.full((tiles, 1), float(tile))
    sizes[-1] -= tiles * tile - length
    top = weights.topk(min(wanted.k, length), dim=-1)
    unseen = torch.arange(top.values.shape[-1]) > torch.arange(length)[:, None]
    return {
        "z": z,
        "lse": torch.logsumexp(scores, dim=-1),
        "max_weight": weights.amax(dim=-1),
        "entropy": -torch.xlogy(weights, weights).sum(dim=-1),
        "first_mass": weights[..., 0],
        "received": weights.sum(dim=2) / torch.arange(length, 0, -1),
        "pooled_mean": torch.unflatten(rows, 2, (tiles, tile)).sum(dim=3) / sizes,
        "distance_hist": _histogram(weights),
        "topk": top.values.masked_fill(unseen, float("nan")),
        "topk_key": top.indices.float().masked_fill(unseen, float("nan")),
    }


def _histogram(weights: Tensor) -> Tensor:
    length = weights.shape[-1]
    # Bin 0 is distance 0, bin n the distances from 2^(n-1) up to 2^n.
    ends = 2 ** torch.arange((length - 1).bit_length() + 1)
    before = torch.nn.functional.pad(weights.cumsum(dim=-1), (1, 0))
    starts = (torch.arange(1, length + 1)[:, None] - ends).clamp_min(0)
    inside = before[..., -1:] - before.gather(3, starts.expand(*weights.shape[:-1], -1))
    return torch.diff(inside, dim=-1, prepend=torch.zeros_like(inside[..., :1]))


def _eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    mask = torch.full((length, length), torch.finfo(q.dtype).min, device=q.device).triu_(1)
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[3] ** -0.5
    scores = scores + mask.to(q.dtype)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return scores, weights, torch.matmul(weights, v)


def make(name: str, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Prepare a contender on given queries, keys and values.

    Parameters
    ----------
    name
        One of ``ATTENTION`` or ``FLEX``.
    q, k, v
        Tensors (1, head, token, 64).

    Returns
    -------
    A call without arguments; it returns what the contender knows, by name.

    Raises
    ------
    HeadscopeError
        When FlexAttention cannot be compiled here with what is asked of it.
    """
    if name in CAPTURES:
        engine, _, column = name.partition("/")
        made: Callable[..., Result] = partial(capture, engine=ENGINES[engine], column=column)
    elif name == "bridge":
        from headscope.app.bench.layers import bridge_attention

        return bridge_attention(q, k, v)
    elif name in FLEX:
        made = _flex(q, k, v, aux=name == "flex_aux")
    else:
        made = {"sdpa": sdpa, "eager": eager, "eager_statistics": eager_statistics}[name]

    def call() -> Result:
        with torch.no_grad():
            return made(q, k, v)

    return call


def attention_call(name: str, length: int, heads: int) -> Call:
    """Prepare a contender on random inputs of a length."""
    return make(name, *attention_inputs(length, heads))


def _flex(q: Tensor, k: Tensor, v: Tensor, aux: bool) -> Any:
    from torch.nn.attention import flex_attention as flex

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    def prepare() -> Callable[..., Result]:
        length, device = q.shape[2], str(q.device)
        # Every shape is compiled for itself; past eight the compiler would give up on speed.
        torch._dynamo.reset()
        large = q.device.type == "cuda"
        mask = flex.create_block_mask(
            causal, None, None, length, length, device=device, _compile=large
        )
        compiled: Any = torch.compile(flex.flex_attention, dynamic=False)
        options = {"block_mask": mask, "enable_gqa": q.shape[1] != k.shape[1]}
        wanted = flex.AuxRequest(lse=True, max_scores=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Result:
            if not aux:
                return {"z": compiled(q, k, v, **options)}
            z, more = compiled(q, k, v, return_aux=wanted, **options)
            return {"z": z, "lse": more.lse, "max_weight": torch.exp(more.max_scores - more.lse)}

        return attend

    try:
        with torch.no_grad():
            attend = prepare()
            attend(q, k, v)
    except Exception as error:
        # Whatever the compiler raises: the result says that this machine could not, and why.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InvalidInput(
            f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        ) from error
    return attend
