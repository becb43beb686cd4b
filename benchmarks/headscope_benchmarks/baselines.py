"""Baselines: headscope and what people use instead, from the same queries, keys and values."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from headscope.kernels import attention
from headscope.kernels.errors import HeadscopeError, NotApplicable, ResourceLimit
from headscope_benchmarks import triton_passes
from headscope_benchmarks.shapes import COLUMNS, cpu_shape, request
from headscope_benchmarks.timing import Call

ENGINES: dict[str, Any] = {"headscope": "auto", "panels": "panels"}
"""Engines of ``attend`` on a CPU, by the name that results have."""
CAPTURES = tuple(f"{engine}/{column}" for engine in ENGINES for column in COLUMNS)
OTHERS = ("eager", "eager_statistics", "bridge")
FLEX = ("flex_aux", "flex")
"""In this order: where the first cannot be compiled, whatever was compiled before would run eagerly
from then on, with N×N matrices and without a word."""
MODEL = ("forward", "capture", "bridge_cache")
"""A whole model: alone, captured, and with a bridge's cache."""
ATTENTION = ("sdpa", *CAPTURES, *OTHERS)
STOCK = {
    "sdpa": None,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Torch's fused attention: as it chooses itself, which is the base, and two of its kernels."""
GPU_CAPTURES = tuple(f"triton/{column}" for column in COLUMNS)
GPU = (
    *STOCK,
    "flex_aux",
    *triton_passes.FORWARD,
    *triton_passes.SECOND,
    *GPU_CAPTURES,
    *triton_passes.PLANS,
)

Result = dict[str, Tensor]
Maker = Callable[[str, Tensor, Tensor, Tensor], Call]


def make(name: str, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Prepare a baseline, or headscope, on queries, keys and values.

    Parameters
    ----------
    name
        One of ``ATTENTION``, ``FLEX`` or ``GPU``.
    q, k, v
        Tensors (batch, head, token, size); ``bridge`` takes one text and no fewer KV heads.

    Returns
    -------
    A call without arguments; it returns what the baseline computes, by name.

    Raises
    ------
    HeadscopeError
        When this machine cannot run it; the message says why.
    """
    engine, _, column = name.partition("/")
    attend: Callable[..., Result]
    if name in STOCK:
        attend = partial(_sdpa, backend=STOCK[name])
    elif name in (*CAPTURES, *GPU_CAPTURES):
        attend = partial(_capture, engine=ENGINES.get(engine, engine), column=column)
    elif name in FLEX:
        attend = _flex(q, k, v, aux=name == "flex_aux")
    elif name == "bridge":
        # A machine with a GPU and nothing but torch and Triton measures the others.
        from headscope_benchmarks.bridge import bridge_attention

        return bridge_attention(q, k, v)
    elif name in ("eager", "eager_statistics"):
        attend = {"eager": _eager, "eager_statistics": _eager_statistics}[name]
    else:
        attend = triton_passes.prepare(name, q, k, v)

    def call() -> Result:
        with torch.no_grad():
            return attend(q, k, v)

    return call


def make_on_gpu(name: str, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Prepare a baseline as `make` does, and run it once: not every kernel takes every shape."""
    call = make(name, q, k, v)
    try:
        call()
    except RuntimeError as error:
        # A shape that a kernel does not take, or memory: the result says so by name.
        raise ResourceLimit(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return call


def prepare(
    names: Iterable[str], q: Tensor, k: Tensor, v: Tensor, maker: Maker = make
) -> tuple[dict[str, Call], dict[str, str]]:
    """Prepare several baselines; return the calls, and why the others cannot run, by name."""
    calls, absent = {}, {}
    for name in names:
        try:
            calls[name] = maker(name, q, k, v)
        except HeadscopeError as reason:
            absent[name] = str(reason)
    return calls, absent


def attention_call(name: str, length: int, heads: int) -> Call:
    """Prepare a baseline on random inputs of a length, heads of 64."""
    return make(name, *cpu_shape(length, heads).inputs())


def compiled() -> bool | str:
    """Return whether the engine ``auto`` is the compiled one on this machine, else why not."""
    try:
        _capture(*cpu_shape(16, 1).inputs(), engine="compiled", column="rows")
    except HeadscopeError as reason:
        return str(reason)
    return True


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None) -> Result:
    """Attend with torch's fused attention, which returns nothing of the weights."""
    attend = partial(
        torch.nn.functional.scaled_dot_product_attention,
        is_causal=True,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    if backend is None:
        return {"z": attend(q, k, v)}
    with sdpa_kernel(backend):
        return {"z": attend(q, k, v)}


def _capture(q: Tensor, k: Tensor, v: Tensor, engine: Any, column: str) -> Result:
    """Attend with the statistics of a column."""
    return attention.attend(q, k, v, request(q.shape[2], column), engine=engine)


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Result:
    """Attend as Hugging Face's eager attention does: product, mask, softmax, product."""
    return {"z": _matrices(q, k, v)[2]}


def _eager_statistics(q: Tensor, k: Tensor, v: Tensor) -> Result:
    """Attend eagerly, then compute every statistic of the benchmark from the whole matrix."""
    scores, weights, z = _matrices(q, k, v)
    length = q.shape[2]
    spec = request(length)
    tile = spec.tile
    tiles = -(-length // tile)
    columns = torch.nn.functional.pad(weights, (0, tiles * tile - length))
    pooled = torch.unflatten(columns, 3, (tiles, tile)).sum(dim=4)
    rows = torch.nn.functional.pad(pooled, (0, 0, 0, tiles * tile - length))
    sizes = torch.full((tiles, 1), float(tile))
    sizes[-1] -= tiles * tile - length
    top = weights.topk(min(spec.k, length), dim=-1)
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
    """Sum weights by distance: bin 0 is distance 0, bin n those from 2^(n-1) up to 2^n."""
    length = weights.shape[-1]
    ends = 2 ** torch.arange((length - 1).bit_length() + 1)
    before = torch.nn.functional.pad(weights.cumsum(dim=-1), (1, 0))
    starts = (torch.arange(1, length + 1)[:, None] - ends).clamp_min(0)
    inside = before[..., -1:] - before.gather(3, starts.expand(*weights.shape[:-1], -1))
    return torch.diff(inside, dim=-1, prepend=torch.zeros_like(inside[..., :1]))


def _matrices(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute masked logits, weights and z."""
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    mask = torch.full((length, length), torch.finfo(q.dtype).min, device=q.device).triu_(1)
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[3] ** -0.5
    scores = scores + mask.to(q.dtype)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return scores, weights, torch.matmul(weights, v)


def _flex(q: Tensor, k: Tensor, v: Tensor, aux: bool) -> Any:
    """Compile FlexAttention for a shape, with the logsumexp and maximum of each row or without."""
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
        aux_request = flex.AuxRequest(lse=True, max_scores=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Result:
            if not aux:
                return {"z": compiled(q, k, v, **options)}
            z, more = compiled(q, k, v, return_aux=aux_request, **options)
            return {"z": z, "lse": more.lse, "max_weight": torch.exp(more.max_scores - more.lse)}

        return attend

    try:
        with torch.no_grad():
            attend = prepare()
            attend(q, k, v)
    except Exception as error:
        # Whatever the compiler raises: the result says that this machine could not, and why.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise NotApplicable(
            f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        ) from error
    return attend
