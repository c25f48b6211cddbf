"""out = epilogue(x · Wᵀ + bias) + residual, W as it is packed.

A program computes a tile [features, tokens], so that weights are the first operand of the matrix product, whose 64 rows
every tensor core fills, be there one token or a thousand. The columns are cut into segments, which only the matrix
decides on. A segment's products are summed in their order, then the segments in theirs: by one program where there are
many tokens, else by one program per segment, the last of which to arrive adds up what the others have left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats import PackedMatrix
from roseinfer.backends.cuda.kernels.activations import activated
from roseinfer.backends.cuda.kernels.arithmetic import cast, dot, element_type
from roseinfer.backends.cuda.kernels.launch import is_interpreted, launch
from roseinfer.backends.cuda.kernels.workspace import Workspace

WANTED_PROGRAMS = 132  # of 128 rows each: one for each multiprocessor of a large GPU
MIN_SEGMENT = 256  # columns
MAX_SPLIT_TOKENS = 256  # for more, partial results would be larger than weights


@dataclass(frozen=True)
class Tiling:
    """What a program computes at once: features (of gate and of up, if gated) × tokens, columns per step."""

    features: int
    tokens: int
    columns: int
    num_warps: int
    num_stages: int


def num_segments(num_rows: int, num_columns: int) -> int:
    return -(-num_columns // segment_columns(num_rows, num_columns))


def segment_columns(num_rows: int, num_columns: int) -> int:
    """Columns per segment, all but the last; a multiple of every tiling's columns."""
    wanted = -(-WANTED_PROGRAMS * 128 // num_rows)
    columns = max(MIN_SEGMENT, -(-num_columns // wanted))
    return -(-columns // MIN_SEGMENT) * MIN_SEGMENT


def tiling_of(layout: str, dtype: torch.dtype, num_features: int, num_tokens: int, gated: bool) -> Tiling:
    if is_interpreted():
        return Tiling(128, 64, 256, 1, 1)
    if dtype == torch.float32:
        return Tiling(32 if gated else 64, 16 if num_tokens <= 16 else 32, 32 if layout == "dense" else 64, 8, 2)
    if num_tokens <= 64:
        tokens = max(16, triton.next_power_of_2(num_tokens))
        return Tiling(64, tokens, 64 if layout == "dense" or tokens == 64 else 128, 4, 4)
    features = 64 if gated else 128
    num_large = triton.cdiv(num_features, features) * triton.cdiv(num_tokens, 128)
    return Tiling(features, 128 if num_large >= WANTED_PROGRAMS else 64, 64, 8, 3)


def is_split(weight: PackedMatrix, num_tokens: int, num_tiles: int) -> bool:
    """Whether a program computes one segment only."""
    most = 32 if is_interpreted() else MAX_SPLIT_TOKENS
    return num_tokens <= most and num_tiles < WANTED_PROGRAMS and num_segments(weight.num_rows, weight.num_columns) > 1


def linear_workspace_floats(weight: PackedMatrix, max_tokens: int) -> int:
    """What `linear` may need of a workspace's partials. Its counters need never be more than WANTED_PROGRAMS."""
    segments = num_segments(weight.num_rows, weight.num_columns)
    tokens = -(-min(max_tokens, MAX_SPLIT_TOKENS) // 128) * 128
    return segments * (weight.num_rows + 256) * tokens if segments > 1 else 0


def linear(
    x: torch.Tensor,
    weight: PackedMatrix,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str,
    gated: bool,
    workspace: Workspace,
) -> None:
    """x [T, K] → out [T, N], or, gated, out [T, N / 2] = activation(gate) * up, where W's rows are [gate; up].

    `bias` is float32[N], `residual` has out's shape and may be out; `activation` is "", silu, gelu or gelu_tanh.
    """
    num_tokens, num_features = out.shape
    tiling = tiling_of(weight.layout, weight.dtype, num_features, num_tokens, gated)
    num_tiles = triton.cdiv(num_features, tiling.features) * triton.cdiv(num_tokens, tiling.tokens)
    split = is_split(weight, num_tokens, num_tiles)
    segments = num_segments(weight.num_rows, weight.num_columns)
    launch(
        _linear_kernel,
        (num_tiles, segments if split else 1),
        x,
        *weight.pointers,
        bias,
        residual,
        out,
        workspace.partials,
        workspace.counters,
        num_tokens,
        num_features,
        weight.num_columns,
        x.stride(0),
        residual.stride(0) if residual is not None else 0,
        out.stride(0),
        TILE=weight.tile,
        DTYPE=element_type(weight.dtype),
        ACTIVATION=activation,
        GATED=gated,
        SEGMENT=segment_columns(weight.num_rows, weight.num_columns),
        NUM_SEGMENTS=segments,
        IS_SPLIT=split,
        BLOCK_F=tiling.features,
        BLOCK_T=tiling.tokens,
        BLOCK_K=tiling.columns,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_kernel(
    x,
    a0,
    a1,
    a2,
    a3,
    bias,
    residual,
    out,
    partials,
    counters,
    num_tokens,
    num_features,
    num_columns,
    x_stride,
    residual_stride,
    out_stride,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    SEGMENT: tl.constexpr,
    NUM_SEGMENTS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    feature_tile, token_tile = _place(tile, num_features, num_tokens, BLOCK_F, BLOCK_T)
    features = feature_tile * BLOCK_F + tl.arange(0, BLOCK_F)
    tokens = token_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(1) * SEGMENT
    last = tl.minimum(num_columns, first + SEGMENT) if IS_SPLIT else num_columns
    # Rows and tokens that do not exist stand for the last ones that do; nobody stores them.
    rows = tl.minimum(features, num_features - 1)
    inputs = x + tl.minimum(tokens, num_tokens - 1).to(tl.int64)[None, :] * x_stride
    sums = tl.zeros((BLOCK_F, BLOCK_T), tl.float32)
    up_sums = sums
    segment = sums
    up_segment = sums
    for k in range(first, last, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        values = cast(tl.load(inputs + columns[:, None], mask=(columns < num_columns)[:, None], other=0.0), DTYPE)
        segment = dot(TILE(a0, a1, a2, a3, rows, k, num_columns, BLOCK_K, DTYPE), values, segment)
        if GATED:
            up = TILE(a0, a1, a2, a3, num_features + rows, k, num_columns, BLOCK_K, DTYPE)
            up_segment = dot(up, values, up_segment)
        if NUM_SEGMENTS > 1 and not IS_SPLIT:  # noqa: SIM102 (known to the compiler, unlike the next)
            if (k + BLOCK_K) % SEGMENT == 0:
                sums += segment
                segment = tl.zeros((BLOCK_F, BLOCK_T), tl.float32)
                if GATED:
                    up_sums += up_segment
                    up_segment = tl.zeros((BLOCK_F, BLOCK_T), tl.float32)
    sums += segment
    up_sums += up_segment
    if IS_SPLIT:
        area: tl.constexpr = BLOCK_F * BLOCK_T
        parts = partials + tile * NUM_SEGMENTS * (1 + GATED) * area
        parts += tl.arange(0, BLOCK_F)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
        mine = parts + tl.program_id(1) * (1 + GATED) * area
        tl.store(mine, sums)
        if GATED:
            tl.store(mine + area, up_sums)
        tl.debug_barrier()
        if tl.atomic_add(counters + tile, 1, sem="acq_rel") < NUM_SEGMENTS - 1:
            return
        tl.store(counters + tile, 0)
        sums = _sum_parts(parts, NUM_SEGMENTS, (1 + GATED) * area)
        if GATED:
            up_sums = _sum_parts(parts + area, NUM_SEGMENTS, 2 * area)
    exists = (features < num_features)[:, None] & (tokens < num_tokens)[None, :]
    if bias is not None:
        sums += tl.load(bias + rows)[:, None]
        if GATED:
            up_sums += tl.load(bias + num_features + rows)[:, None]
    result = activated(sums, ACTIVATION)
    if GATED:
        result *= up_sums
    if residual is not None:
        kept = residual + tokens.to(tl.int64)[None, :] * residual_stride + features[:, None]
        result += tl.load(kept, mask=exists, other=0.0).to(tl.float32)
    to = out + tokens.to(tl.int64)[None, :] * out_stride + features[:, None]
    tl.store(to, cast(result, out.dtype.element_ty), mask=exists)


@triton.jit
def _place(tile, num_features, num_tokens, BLOCK_F: tl.constexpr, BLOCK_T: tl.constexpr):
    """(feature tile, token tile): eight of features, then the next of tokens, so that neighbours share operands."""
    num_feature_tiles = tl.cdiv(num_features, BLOCK_F)
    num_token_tiles = tl.cdiv(num_tokens, BLOCK_T)
    group = tile // (8 * num_token_tiles)
    within = tile % (8 * num_token_tiles)
    width = tl.minimum(8, num_feature_tiles - 8 * group)
    return 8 * group + within % width, within // width


@triton.jit
def _sum_parts(parts, NUM_PARTS: tl.constexpr, STRIDE: tl.constexpr):
    """The tiles at parts, parts + STRIDE, ..., added in this order; not from a cache that may hold older ones."""
    sums = tl.zeros(parts.shape, tl.float32)
    for i in range(NUM_PARTS):
        sums += tl.load(parts + i * STRIDE, cache_modifier=".cg")
    return sums
