"""Long texts on the GPU, against oracles from torch's own attention; and what memory they take."""

import long_oracles
import pytest
import torch
from attention_inputs import check_same
from torch import Tensor

from headscope.kernels import statistics
from headscope.kernels.api import Request, attend
from headscope.kernels.triton.plan import ways

SIZE = 64
SCALE = SIZE**-0.5
LENGTHS = (32_768, 131_072)


def draw(length: int, heads: int, device: torch.device, size: int = SIZE) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(length)
    shape = (1, heads, length, size)
    drawn = (torch.randn(shape, generator=generator, device=device) for _ in range(3))
    return [one.to(torch.bfloat16) for one in drawn]


def near(got: Tensor, expected: Tensor, bound: float) -> None:
    error = (got - expected).abs().max().item()
    assert error <= bound, f"off by {error:.2g}, allowed {bound:.2g}"


@pytest.mark.parametrize("length", LENGTHS)
def test_long_texts_agree_with_torch(length, device):
    q, k, v = draw(length, 2, device)
    tile = length // 64
    request = Request(stats=("lse", "entropy", "received", "pooled_mean"), tile=tile)
    got = attend(q, k, v, request, engine="triton")
    q, k, v = q.float(), k.float(), v.float()
    z, lse = long_oracles.attend(q, k, v, SCALE)
    near(got["z"], z, 1e-2)
    near(got["lse"], lse, 1e-5)
    near(got["entropy"], long_oracles.entropy(q, k, SCALE), 1e-4)
    query_counts = length - torch.arange(length, device=device)
    columns = long_oracles.received(q, k, lse, SCALE)
    near(got["received"] * query_counts, columns, 1e-4 * columns.max().item())
    mass = long_oracles.tile_mass(q, k, tile, SCALE)
    pooled = torch.unflatten(mass, 2, (-1, tile)).mean(dim=3)
    near(got["pooled_mean"], pooled, 1e-5)
    assert not pooled.triu(1).any()


def test_long_results_are_the_same_twice(device):
    q, k, v = draw(32_768, 2, device)
    request = Request(stats=("lse", "entropy", "received", "pooled_max"), tile=256)
    once, twice = (attend(q, k, v, request, engine="triton") for _ in range(2))
    check_same(once, twice)


def extra_of(request: Request, tensors: list[Tensor]) -> tuple[int, int]:
    """Return the bytes of the results, and the peak beyond the inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = attend(*tensors, request, engine="triton")
    torch.cuda.synchronize()
    size = sum(result.numel() * result.element_size() for result in results.values())
    return size, torch.cuda.max_memory_allocated() - before


def test_memory_is_that_of_the_results(device):
    tensors = draw(65_536, 8, device, 128)
    results, peak = extra_of(Request(stats=("lse", "max_weight", "entropy")), tensors)
    # The normaliser in base 2 is kept beside the results, and bounds of every tile.
    assert peak <= 1.05 * results + 4 * 8 * 65_536 + (1 << 22)


def test_a_layer_of_128k_tokens_fits_in_8_gb(device):
    tensors = draw(131_072, 32, device, 128)
    names = tuple(name for name, way in ways(statistics.names()).items() if way != "panels")
    spans = torch.arange(131_072, device=device)[None] // 16_384
    targets = torch.arange(131_072, device=device).sub(1)[None, None, :, None]
    names = tuple(name for name in names if name != "pattern")
    request = Request(stats=names, tile=256, spans=spans, targets=targets, offsets=(0, 1))
    _, peak = extra_of(request, tensors)
    z = 4 * 32 * 131_072 * 128
    assert peak - z <= 8e9
