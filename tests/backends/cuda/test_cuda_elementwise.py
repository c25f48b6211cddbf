"""Elementwise kernels against torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.kernels import elementwise
from roseinfer.backends.torch import ops
from roseinfer.graph import RopeSpec

DEVICE = open_device()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (5, 7), (40, 96), (33, 1025)]


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> torch.Tensor:
    """With gaps between the rows."""
    numbers = torch.randn(shape[0], 2 * shape[1], generator=torch.Generator().manual_seed(seed)) * scale
    return numbers.to(DEVICE, dtype)[:, : shape[1]]


def assert_rounded(out: torch.Tensor, expected: torch.Tensor) -> None:
    """What was computed in float64 is what a float32 kernel gave, but for its error and the rounding to out's dtype."""
    error = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[out.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=error, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The float32 sum, rounded once; in place, too."""
    a, b = values(*shape), values(*shape, seed=1, dtype=dtype)
    out = torch.empty(shape, dtype=dtype, device=DEVICE)
    elementwise.add(a, b, out)
    torch.testing.assert_close(out, (a + b.float()).to(dtype), rtol=0, atol=0)
    elementwise.add(a, b, b)
    torch.testing.assert_close(b, out, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ops.ACTIVATIONS)
def test_activate(kind: str, dtype: torch.dtype) -> None:
    x, out = values(33, 97, scale=6.0), torch.empty(33, 97, dtype=dtype, device=DEVICE)
    elementwise.activate(x, out, kind)
    assert_rounded(out, ops.ACTIVATIONS[kind](x.double()))


@pytest.mark.parametrize("kind", ops.ACTIVATIONS)
def test_activations_far_from_zero(kind: str) -> None:
    x = torch.tensor([[-1e10, -1000.0, -100.0, 0.0, 100.0, 1000.0, 1e10]], device=DEVICE)
    out = torch.empty_like(x)
    elementwise.activate(x, out, kind)
    torch.testing.assert_close(out, torch.clamp(x, min=0.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ops.ACTIVATIONS)
def test_gate(kind: str, dtype: torch.dtype) -> None:
    gate, up = values(33, 97), values(33, 97, seed=1)
    out = torch.empty(33, 97, dtype=dtype, device=DEVICE)
    elementwise.gate(gate, up, out, kind)
    assert_rounded(out, ops.ACTIVATIONS[kind](gate.double()) * up.double())
    elementwise.gate(gate, up, up, kind)
    torch.testing.assert_close(up.to(dtype), out, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [[0], [4, 0, 4], list(range(4, -1, -1)) * 8])
def test_take_rows(rows: list[int], dtype: torch.dtype) -> None:
    x = values(5, 300, dtype=dtype)
    taken = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    out = torch.full((len(rows), 310), torch.nan, dtype=dtype, device=DEVICE)
    elementwise.take_rows(x, taken, out[:, 5:305])
    torch.testing.assert_close(out[:, 5:305], x[rows], rtol=0, atol=0)
    assert out[:, :5].isnan().all()
    assert out[:, 305:].isnan().all()


@settings(max_examples=25, deadline=None)
@given(
    num_heads=st.integers(1, 9),
    half=st.sampled_from([1, 3, 8, 20, 32]),
    num_rest=st.sampled_from([0, 1, 12]),
    scale=st.sampled_from([1.0, 1.2079]),
    positions=st.lists(st.integers(0, 200_000), min_size=1, max_size=4),
)
def test_rope(num_heads: int, half: int, num_rest: int, scale: float, positions: list[int]) -> None:
    """Also far from position 0, where angles need more than float32; out of place and in place."""
    spec = RopeSpec(tuple(10000.0 ** (-i / half) for i in range(half)), scale)
    x = values(len(positions), num_heads * (2 * half + num_rest))
    before = x.clone()
    at = torch.tensor(positions, dtype=torch.int32, device=DEVICE)
    inv_freq = torch.tensor(spec.inv_freq, dtype=torch.float64, device=DEVICE)
    out = torch.empty(x.shape, device=DEVICE)
    elementwise.rope(x, at, inv_freq, scale, out, num_heads)
    torch.testing.assert_close(out.double(), ops.rope(x.double(), at, spec, num_heads), rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    elementwise.rope(x, at, inv_freq, scale, x, num_heads)
    torch.testing.assert_close(x, out, rtol=0, atol=0)


def test_rope_over_more_heads_than_a_program_has() -> None:
    spec = RopeSpec(tuple(10000.0 ** (-i / 64) for i in range(64)))
    x = values(2, 40 * 128)
    at, inv_freq = torch.tensor([3, 77], dtype=torch.int32), torch.tensor(spec.inv_freq, dtype=torch.float64)
    out = torch.empty_like(x)
    elementwise.rope(x, at.to(DEVICE), inv_freq.to(DEVICE), 1.0, out, 40)
    torch.testing.assert_close(out.double(), ops.rope(x.double(), at.to(DEVICE), spec, 40), rtol=1e-6, atol=3e-6)
