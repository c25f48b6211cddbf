"""Keys and values on their way into the cache: head norm, rope, rounding; the queries are made ready beside them."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.arithmetic import cast, element_type
from roseinfer.backends.cuda.kernels.launch import is_interpreted, launch
from roseinfer.backends.cuda.kv_cache import BLOCK_SIZE, KvLayer

TURN = tl.constexpr(2 * math.pi)
PER_TURN = tl.constexpr(1 / (2 * math.pi))
BLOCK = tl.constexpr(BLOCK_SIZE)


def store_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    token_rows: torch.Tensor,
    block_tables: torch.Tensor,
    cache: KvLayer,
    *,
    inv_freq: torch.Tensor | None = None,
    rope_scale: float = 1.0,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norms and turns the heads of q [T, H * D], in place, and of k [T, KV * D]; stores k and v [T, KV * D].

    `positions` and `token_rows` are int32[T], `block_tables` int32[R, B]; a token at position -1 does not exist and is
    left alone. `inv_freq` float64[half] turns the first 2 * half features of each head; None: no rope. `q_norm` and
    `k_norm` float32[D] go together; None: no head norm.
    """
    assert (q_norm is None) == (k_norm is None)
    head_dim, num_kv_heads = cache.head_dim, cache.num_kv_heads
    half = 0 if inv_freq is None else inv_freq.numel()
    group = q.shape[1] // (num_kv_heads * head_dim)
    tokens = 32 if is_interpreted() else 1
    launch(
        store_kv_kernel,
        (triton.cdiv(q.shape[0], tokens), num_kv_heads),
        *(q, k, v, positions, token_rows, block_tables, cache.slabs, inv_freq, q_norm, k_norm),
        *(q.stride(0), k.stride(0), v.stride(0), block_tables.stride(0), cache.offset, rope_scale, eps),
        q.shape[0],
        TOKENS=tokens,
        G=group,
        KV=num_kv_heads,
        D=head_dim,
        HALF=half,
        HAS_NORM=q_norm is not None,
        PADDED_G=triton.next_power_of_2(group),
        PADDED_D=triton.next_power_of_2(head_dim),
        PADDED_HALF=triton.next_power_of_2(max(1, half)),
        PADDED_REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
        DTYPE=element_type(cache.dtype),
        BLOCKS_PER_SLAB=cache.blocks_per_slab,
        num_warps=store_warps(group, head_dim),
        num_stages=1,
    )


def store_warps(group: int, head_dim: int) -> int:
    """Up to 16 features of the queries for each thread."""
    return min(4, max(1, triton.next_power_of_2(group * head_dim) // 512))


@triton.jit
def key_rows(
    slabs, ids, slots, kv_head, offset,
    KV: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr, BLOCKS_PER_SLAB: tl.constexpr,
):  # fmt: skip
    """Pointers to the keys in `slots` of blocks `ids`; BLOCKS_PER_SLAB * KV * 16 * D elements behind are the values."""
    ids = ids.to(tl.uint32)
    base = tl.load(slabs + ids // BLOCKS_PER_SLAB).to(tl.pointer_type(DTYPE)) + offset
    rows = base + (((ids % BLOCKS_PER_SLAB).to(tl.int32) * KV + kv_head) * BLOCK + slots) * D
    # Of loaded addresses the compiler cannot know that rows begin at multiples of their length.
    num_bytes: tl.constexpr = D * DTYPE.primitive_bitwidth // 8
    return tl.multiple_of(rows, 16 if num_bytes % 16 == 0 else DTYPE.primitive_bitwidth // 8)


@triton.jit
def cos_and_sin(position, inv_freq, scale, HALF: tl.constexpr, PADDED_HALF: tl.constexpr):
    """Of position * inv_freq, times scale; whole turns are taken away in float64. `position` is a scalar or [N, 1], the
    results are [1, PADDED_HALF] or [N, PADDED_HALF].
    """
    i = tl.arange(0, PADDED_HALF)[None, :]
    turns = position.to(tl.float64) * tl.load(inv_freq + i, mask=i < HALF, other=0.0) * PER_TURN
    angles = ((turns - tl.floor(turns + 0.5)) * TURN).to(tl.float32)
    return tl.cos(angles) * scale, tl.sin(angles) * scale


@triton.jit
def load_features(heads, i, mask):
    return tl.load(heads + i, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def put_heads(
    heads, targets, mask, cos, sin, norm, eps,
    D: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr, PADDED_HALF: tl.constexpr, PADDED_REST: tl.constexpr,
):  # fmt: skip
    """Norms and turns the heads at pointers `heads` [N, 1] and stores them at `targets` [N, 1], which may be the same.

    Each feature is written by the thread that reads it and its partner.
    """
    i = tl.arange(0, PADDED_HALF)[None, :]
    j = 2 * HALF + tl.arange(0, PADDED_REST)[None, :]
    HAS_REST: tl.constexpr = 2 * HALF < D  # that rope leaves alone
    first = load_features(heads, i, mask & (i < HALF))
    second = load_features(heads, i + HALF, mask & (i < HALF))
    rest = load_features(heads, j, mask & (j < D)) if HAS_REST else first
    if HAS_NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if HAS_REST:
            squares += tl.sum(rest * rest, 1)
        factor = tl.rsqrt(squares / D + eps)[:, None]
        first = first * factor * load_features(norm, i, i < HALF)
        second = second * factor * load_features(norm, i + HALF, i < HALF)
        if HAS_REST:
            rest = rest * factor * load_features(norm, j, j < D)
    dtype: tl.constexpr = targets.dtype.element_ty
    tl.store(targets + i, cast(first * cos - second * sin, dtype), mask=mask & (i < HALF))
    tl.store(targets + i + HALF, cast(second * cos + first * sin, dtype), mask=mask & (i < HALF))
    if HAS_REST:
        tl.store(targets + j, cast(rest, dtype), mask=mask & (j < D))


@triton.jit(do_not_specialize=["offset", "num_tokens", "table_stride"])
def store_kv_kernel(
    q, k, v, positions, token_rows, block_tables, slabs, inv_freq, q_norm, k_norm,
    q_stride, k_stride, v_stride, table_stride, offset: tl.int64, rope_scale, eps, num_tokens,
    TOKENS: tl.constexpr,
    G: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    PADDED_G: tl.constexpr, PADDED_D: tl.constexpr, PADDED_HALF: tl.constexpr, PADDED_REST: tl.constexpr,
    DTYPE: tl.constexpr, BLOCKS_PER_SLAB: tl.constexpr,
):  # fmt: skip
    """One program for each KV head of TOKENS tokens: the G queries, the key and the value of each."""
    kv_head = tl.program_id(1)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    position = tl.load(positions + token, mask=token < num_tokens, other=-1)
    exists = position >= 0
    row = tl.load(token_rows + token, mask=exists, other=0).to(tl.int64)
    block = tl.load(block_tables + row * table_stride + position // BLOCK, mask=exists, other=0)
    keys = key_rows(slabs, block, position % BLOCK, kv_head, offset, KV, D, DTYPE, BLOCKS_PER_SLAB)[:, None]
    token, position, exists = token[:, None], position[:, None], exists[:, None]

    i = tl.arange(0, PADDED_D)[None, :]
    value = tl.load(v + token * v_stride + kv_head * D + i, mask=exists & (i < D), other=0.0)
    tl.store(keys + BLOCKS_PER_SLAB * KV * BLOCK * D + i, cast(value, DTYPE), mask=exists & (i < D))

    cos, sin = tl.full((1, 1), 1.0, tl.float32), tl.full((1, 1), 0.0, tl.float32)
    if HALF > 0:
        cos, sin = cos_and_sin(position, inv_freq, rope_scale, HALF, PADDED_HALF)
    key = k + token * k_stride + kv_head * D
    put_heads(key, keys, exists, cos, sin, k_norm, eps, D, HALF, HAS_NORM, PADDED_HALF, PADDED_REST)

    of = tl.arange(0, TOKENS * PADDED_G)[:, None]
    head = of % PADDED_G
    token = tl.program_id(0).to(tl.int64) * TOKENS + of // PADDED_G
    position = tl.load(positions + token, mask=token < num_tokens, other=-1)
    if HALF > 0 and TOKENS > 1:  # else those of the key
        cos, sin = cos_and_sin(position, inv_freq, rope_scale, HALF, PADDED_HALF)
    exists = (position >= 0) & (head < G)
    query = q + token * q_stride + (kv_head * G + head) * D
    put_heads(query, query, exists, cos, sin, q_norm, eps, D, HALF, HAS_NORM, PADDED_HALF, PADDED_REST)
