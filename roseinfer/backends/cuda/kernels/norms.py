"""Norms of rows, or of each head of a row. A row is reduced in one order, which its width alone decides."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.backends.cuda.kernels.launch import is_interpreted, launch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, num_heads: int) -> None:
    """out = x / sqrt(mean(x²) + eps) * weight for each of `num_heads` parts of the rows of x [T, W].

    weight is float32[W / num_heads]. out may be x.
    """
    width = x.shape[1] // num_heads
    tile = norm_tile(width)
    launch(
        rms_norm_kernel,
        (triton.cdiv(x.shape[0] * num_heads, tile["ROWS"]),),
        *(x, weight, out, x.stride(0), out.stride(0), x.shape[0] * num_heads, eps),
        HEADS=num_heads,
        WIDTH=width,
        **tile,
        num_warps=norm_warps(tile),
    )


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """out = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias for the rows of x [T, W].

    weight and bias are float32[W]. out may be x.
    """
    tile = norm_tile(x.shape[1])
    launch(
        layer_norm_kernel,
        (triton.cdiv(x.shape[0], tile["ROWS"]),),
        *(x, weight, bias, out, x.stride(0), out.stride(0), x.shape[0], eps),
        WIDTH=x.shape[1],
        **tile,
        num_warps=norm_warps(tile),
    )


MAX_BLOCK = 16384  # features of a row that are in registers together; wider rows are read again


def norm_tile(width: int) -> dict[str, int]:
    """How many features (BLOCK) of how many rows a program has at a time."""
    block = min(triton.next_power_of_2(width), MAX_BLOCK)
    return {"ROWS": 16 if is_interpreted() else max(1, 512 // block), "BLOCK": block}


def norm_warps(tile: dict[str, int]) -> int:
    """Up to 16 features for each thread."""
    return min(16, max(1, tile["ROWS"] * tile["BLOCK"] // 512))


@triton.jit
def load_features(rows, mask, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Features from `start` on of the rows at pointers [ROWS, 1]; 0 beyond the row."""
    features = start + tl.arange(0, BLOCK)[None, :]
    return tl.load(rows + features, mask=mask & (features < WIDTH), other=0.0).to(tl.float32)


@triton.jit
def load_weight(weight, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    features = start + tl.arange(0, BLOCK)[None, :]
    return tl.load(weight + features, mask=features < WIDTH, other=0.0)


@triton.jit
def store_features(rows, mask, start, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    features = start + tl.arange(0, BLOCK)[None, :]
    tl.store(rows + features, cast(y, rows.dtype.element_ty), mask=mask & (features < WIDTH))


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x, weight, out, x_stride, out_stride, num_rows, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    mask = row < num_rows
    token, head = (row // HEADS).to(tl.int64), row % HEADS
    x += token * x_stride + head * WIDTH
    out += token * out_stride + head * WIDTH
    if WIDTH <= BLOCK:
        values = load_features(x, mask, 0, WIDTH, BLOCK)
        factor = tl.rsqrt(tl.sum(values * values, 1)[:, None] / WIDTH + eps)
        store_features(out, mask, 0, values * factor * load_weight(weight, 0, WIDTH, BLOCK), WIDTH, BLOCK)
    else:
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            values = load_features(x, mask, start, WIDTH, BLOCK)
            squares += values * values
        factor = tl.rsqrt(tl.sum(squares, 1)[:, None] / WIDTH + eps)
        for start in range(0, WIDTH, BLOCK):
            values = load_features(x, mask, start, WIDTH, BLOCK)
            store_features(out, mask, start, values * factor * load_weight(weight, start, WIDTH, BLOCK), WIDTH, BLOCK)


@triton.jit
def deviations(values, mean, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """values - mean; 0 beyond the row."""
    features = start + tl.arange(0, BLOCK)[None, :]
    return tl.where(features < WIDTH, values - mean, 0.0)


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_kernel(
    x, weight, bias, out, x_stride, out_stride, num_rows, eps,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    mask = row < num_rows
    x += row.to(tl.int64) * x_stride
    out += row.to(tl.int64) * out_stride
    if WIDTH <= BLOCK:
        values = load_features(x, mask, 0, WIDTH, BLOCK)
        deviation = deviations(values, tl.sum(values, 1)[:, None] / WIDTH, 0, WIDTH, BLOCK)
        factor = tl.rsqrt(tl.sum(deviation * deviation, 1)[:, None] / WIDTH + eps)
        y = deviation * factor * load_weight(weight, 0, WIDTH, BLOCK) + load_weight(bias, 0, WIDTH, BLOCK)
        store_features(out, mask, 0, y, WIDTH, BLOCK)
    else:
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            total += load_features(x, mask, start, WIDTH, BLOCK)
        mean = tl.sum(total, 1)[:, None] / WIDTH
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, WIDTH, BLOCK):
            deviation = deviations(load_features(x, mask, start, WIDTH, BLOCK), mean, start, WIDTH, BLOCK)
            squares += deviation * deviation
        factor = tl.rsqrt(tl.sum(squares, 1)[:, None] / WIDTH + eps)
        for start in range(0, WIDTH, BLOCK):
            deviation = deviations(load_features(x, mask, start, WIDTH, BLOCK), mean, start, WIDTH, BLOCK)
            y = deviation * factor * load_weight(weight, start, WIDTH, BLOCK) + load_weight(bias, start, WIDTH, BLOCK)
            store_features(out, mask, start, y, WIDTH, BLOCK)
