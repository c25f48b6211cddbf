"""The norms' kernels against torch in float64, and against themselves with other rows beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.kernels.norms import MAX_BLOCK, layer_norm, rms_norm
from roseinfer.backends.torch import ops

DEVICE = open_device()
EPS = 1e-5
WIDTHS = [1, 7, 64, 80, 640, 2048, MAX_BLOCK, MAX_BLOCK + 5, 2 * MAX_BLOCK + 1000]

Norm = Callable[[torch.Tensor, torch.Tensor], None]


def values(*shape: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).add(offset).to(DEVICE)


def rms(width: int) -> tuple[Norm, Norm]:
    """The kernel and what it should give."""
    weight = values(width, seed=1)

    def expected(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(ops.rms_norm(x.double(), weight.double(), EPS, 1))

    return lambda x, out: rms_norm(x, weight, out, EPS, 1), expected


def layer(width: int) -> tuple[Norm, Norm]:
    weight, bias = values(width, seed=2), values(width, seed=3)

    def expected(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(ops.layer_norm(x.double(), weight.double(), bias.double(), EPS))

    return lambda x, out: layer_norm(x, weight, bias, out, EPS), expected


NORMS = {"rms_norm": rms, "layer_norm": layer}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_equals_the_reference(make: Callable[[int], tuple[Norm, Norm]], width: int) -> None:
    x = values(3, width, offset=0.5)
    norm, reference = make(width)
    out, expected = torch.empty_like(x), torch.empty_like(x, dtype=torch.float64)
    norm(x, out)
    reference(x, expected)
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_rounds_to_nearest(make: Callable[[int], tuple[Norm, Norm]], dtype: torch.dtype) -> None:
    """The 16-bit output is the float32 one, rounded; a 16-bit input is read as it is."""
    x = values(5, 100).to(dtype)
    norm, _ = make(100)
    exact, rounded = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x)
    norm(x, exact)
    norm(x, rounded)
    torch.testing.assert_close(rounded, exact.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("width", [64, 2048, MAX_BLOCK + 5])
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_a_row_does_not_depend_on_its_neighbours(make: Callable[[int], tuple[Norm, Norm]], width: int) -> None:
    """Nor on the rows' distance in memory, nor on where the results go."""
    x = values(37, width)
    norm, _ = make(width)
    together = torch.empty_like(x)
    norm(x, together)
    apart = torch.full((37, 2 * width + 8), torch.nan, device=DEVICE)[:, 3 : 3 + width]
    apart.copy_(x)
    norm(apart, apart)
    torch.testing.assert_close(apart, together, rtol=0, atol=0)
    for row in (0, 16, 36):
        alone = torch.empty_like(x[:1])
        norm(x[row : row + 1], alone)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=0)


@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 128), (4, 64), (6, 80), (3, 1)])
def test_heads_are_rows(num_heads: int, head_dim: int) -> None:
    x, weight = values(5, num_heads * head_dim), values(head_dim, seed=4)
    out, heads = torch.empty_like(x), torch.empty(5 * num_heads, head_dim, device=DEVICE)
    rms_norm(x, weight, out, EPS, num_heads)
    rms_norm(x.view(-1, head_dim), weight, heads, EPS, 1)
    torch.testing.assert_close(out.view(-1, head_dim), heads, rtol=0, atol=0)
    torch.testing.assert_close(out, ops.rms_norm(x, weight, EPS, num_heads), rtol=1e-5, atol=1e-6)


def test_rows_far_from_zero_keep_their_deviations() -> None:
    x = values(2, 512, offset=1000.0)
    ones, zeros, out = torch.ones(512, device=DEVICE), torch.zeros(512, device=DEVICE), torch.empty_like(x)
    layer_norm(x, ones, zeros, out, EPS)
    torch.testing.assert_close(
        out.double(), ops.layer_norm(x.double(), ones.double(), zeros.double(), EPS), rtol=1e-3, atol=1e-3
    )
