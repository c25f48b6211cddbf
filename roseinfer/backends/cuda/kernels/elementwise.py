"""What is done to each feature by itself, or to pairs of features: sums, activations, rows taken, rope."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.activations import activated
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.backends.cuda.kernels.launch import is_interpreted, launch
from roseinfer.backends.cuda.kernels.store_kv import cos_and_sin


def add(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = a + b, [T, W] each. out may be a or b."""
    _launch_tiles(add_kernel, out, a, b, out, a.stride(0), b.stride(0), out.stride(0))


def activate(x: torch.Tensor, out: torch.Tensor, kind: str) -> None:
    """out = kind(x), [T, W] each; kinds are those of `activated`. out may be x."""
    _launch_tiles(activate_kernel, out, x, out, x.stride(0), out.stride(0), KIND=kind)


def gate(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor, kind: str) -> None:
    """out = kind(gate) * up, [T, W] each. out may be gate or up."""
    _launch_tiles(gate_kernel, out, gate, up, out, gate.stride(0), up.stride(0), out.stride(0), KIND=kind)


def take_rows(x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """out [L, W] = the rows int32[L] of x [T, W]."""
    _launch_tiles(take_rows_kernel, out, x, rows, out, x.stride(0), out.stride(0))


def rope(
    x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, scale: float, out: torch.Tensor, num_heads: int
) -> None:
    """Turns the first 2 * half features of each head of x [T, H * D] by positions int32[T] * inv_freq float64[half],
    and scales them. out may be x.
    """
    half = inv_freq.numel()
    head_dim = x.shape[1] // num_heads
    heads = min(triton.next_power_of_2(num_heads), max(1, 2048 // triton.next_power_of_2(half)))
    launch(
        rope_kernel,
        (x.shape[0], triton.cdiv(num_heads, heads)),
        *(x, positions, inv_freq, out, x.stride(0), out.stride(0), scale),
        NUM_HEADS=num_heads,
        D=head_dim,
        HALF=half,
        HEADS=heads,
        PADDED_HALF=triton.next_power_of_2(half),
        PADDED_REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
        num_warps=4,
    )


def _launch_tiles(kernel: Any, out: torch.Tensor, *args: Any, **constants: Any) -> None:
    """A program for each tile of out [T, W]."""
    num_rows, width = out.shape
    block = min(triton.next_power_of_2(width), 1024)
    rows = 32 if is_interpreted() else 1024 // block
    grid = (triton.cdiv(num_rows, rows), triton.cdiv(width, block))
    launch(kernel, grid, *args, num_rows, width, **constants, ROWS=rows, BLOCK=block)


@triton.jit
def tile_of(num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows [ROWS, 1], features [1, BLOCK] and which of them are there."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    features = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return rows.to(tl.int64), features, (rows < num_rows) & (features < width)


@triton.jit
def load_tile(x, stride, rows, features, mask):
    return tl.load(x + rows * stride + features, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(out, stride, rows, features, mask, y):
    tl.store(out + rows * stride + features, cast(y, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def add_kernel(
    a, b, out, a_stride, b_stride, out_stride, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    rows, features, mask = tile_of(num_rows, width, ROWS, BLOCK)
    y = load_tile(a, a_stride, rows, features, mask) + load_tile(b, b_stride, rows, features, mask)
    store_tile(out, out_stride, rows, features, mask, y)


@triton.jit(do_not_specialize=["num_rows"])
def activate_kernel(
    x, out, x_stride, out_stride, num_rows, width, KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    rows, features, mask = tile_of(num_rows, width, ROWS, BLOCK)
    y = activated(load_tile(x, x_stride, rows, features, mask), KIND)
    store_tile(out, out_stride, rows, features, mask, y)


@triton.jit(do_not_specialize=["num_rows"])
def gate_kernel(
    gate, up, out, gate_stride, up_stride, out_stride, num_rows, width,
    KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, features, mask = tile_of(num_rows, width, ROWS, BLOCK)
    y = activated(load_tile(gate, gate_stride, rows, features, mask), KIND)
    store_tile(out, out_stride, rows, features, mask, y * load_tile(up, up_stride, rows, features, mask))


@triton.jit(do_not_specialize=["num_rows"])
def take_rows_kernel(
    x, taken, out, x_stride, out_stride, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    rows, features, mask = tile_of(num_rows, width, ROWS, BLOCK)
    sources = tl.load(taken + rows, mask=rows < num_rows, other=0).to(tl.int64)
    store_tile(out, out_stride, rows, features, mask, load_tile(x, x_stride, sources, features, mask))


@triton.jit
def rope_kernel(
    x, positions, inv_freq, out, x_stride, out_stride, scale,
    NUM_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, PADDED_HALF: tl.constexpr, PADDED_REST: tl.constexpr,
):  # fmt: skip
    """One program for each token and HEADS heads. Pairs are written by the thread that reads them."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, PADDED_HALF)[None, :]
    mask = (heads < NUM_HEADS) & (i < HALF)
    first = load_tile(x, x_stride, token, heads * D + i, mask)
    second = load_tile(x, x_stride, token, heads * D + i + HALF, mask)
    cos, sin = cos_and_sin(tl.load(positions + token), inv_freq, scale, HALF, PADDED_HALF)
    store_tile(out, out_stride, token, heads * D + i, mask, first * cos - second * sin)
    store_tile(out, out_stride, token, heads * D + i + HALF, mask, second * cos + first * sin)
    if D > 2 * HALF:
        rest = 2 * HALF + tl.arange(0, PADDED_REST)[None, :]
        is_rest = (heads < NUM_HEADS) & (rest < D)
        store_tile(
            out, out_stride, token, heads * D + rest, is_rest, load_tile(x, x_stride, token, heads * D + rest, is_rest)
        )
