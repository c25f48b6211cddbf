"""Causal attention over the paged KV cache: one tile shape and one order of additions for prompts and for decoding.

A program has a tile of queries, the heads of some tokens that share a KV head, and goes over the keys in tiles and
splits at absolute positions. Each split of 256 keys has a softmax of its own; the splits are merged ascending. So it
makes no difference to a token which others stand in its tile, or over how many programs the splits are spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.kernels.arithmetic import cast, dot, element_type
from roseinfer.backends.cuda.kernels.launch import capability_of, launch
from roseinfer.backends.cuda.kernels.store_kv import key_rows
from roseinfer.backends.cuda.kernels.workspace import Workspace
from roseinfer.backends.cuda.kv_cache import BLOCK_SIZE, KvLayer
from roseinfer.core.batch import Int32Array
from roseinfer.core.errors import UnsupportedModelError
from roseinfer.graph import AttentionSpec

TILE_QUERIES = 64
SPLIT_KEYS = 256
MAX_HEAD_DIM = 256
MIN_PRODUCT = 16  # the least that a product of tiles may sum over
NO_WINDOW = 1 << 30  # more positions than any context has

BLOCK = tl.constexpr(BLOCK_SIZE)
QUERIES = tl.constexpr(TILE_QUERIES)
SPLIT = tl.constexpr(SPLIT_KEYS)
MERGED_QUERIES = tl.constexpr(16)  # of which one program has the totals in registers when it merges partials
MERGED_AHEAD = tl.constexpr(4)  # partials that are loaded before they are needed


@dataclass(frozen=True, slots=True)
class QueryTiles:
    """Up to `tokens_per_tile` tokens of one row each; see `make_tiles`."""

    rows: torch.Tensor  # int32 [NT]
    starts: torch.Tensor  # int32 [NT], the tile's first token; -1: the tile does not exist
    tokens_per_tile: int


@dataclass(frozen=True, slots=True)
class KeyTile:
    """How a program goes over the keys; a function of the head's size and type, never of the step."""

    num_keys: int
    num_warps: int
    num_stages: int


def tokens_per_tile(spec: AttentionSpec) -> int:
    """Of how many tokens a tile holds the heads. Raises UnsupportedModelError for shapes that do not fit a tile."""
    group = spec.num_heads // spec.num_kv_heads
    if group > TILE_QUERIES:
        raise UnsupportedModelError(f"{group} query heads per KV head; device cuda supports up to {TILE_QUERIES}")
    if spec.head_dim > MAX_HEAD_DIM:
        raise UnsupportedModelError(f"heads of {spec.head_dim} features; device cuda supports up to {MAX_HEAD_DIM}")
    return TILE_QUERIES // group


def make_tiles(row_offsets: Int32Array, tokens_per_tile: int) -> tuple[Int32Array, Int32Array]:
    """(rows, starts) of the tiles that cover tokens `row_offsets[r]:row_offsets[r + 1]` of every row r, ascending."""
    num_tiles = -(-np.diff(row_offsets) // tokens_per_tile)
    ends = np.cumsum(num_tiles)
    rows = np.repeat(np.arange(len(num_tiles), dtype=np.int32), num_tiles)
    number_in_row = np.arange(len(rows)) - (ends - num_tiles)[rows]
    return rows, (row_offsets[rows] + number_in_row * tokens_per_tile).astype(np.int32)


def attention_workspace_floats(num_tokens: int, num_heads: int, head_dim: int, num_splits: int) -> int:
    """For `num_splits` splits of keys: weighted values, maximum and sum of each token and head in each split."""
    return num_tokens * num_heads * num_splits * (head_dim + 2)


def key_tile(head_dim: int, dtype: torch.dtype, has_wgmma: bool) -> KeyTile:
    """What fits into registers beside the accumulators of a split and of all splits.

    Shared memory: up to 99 KiB where there is no wgmma, 128 KiB where there is.
    """
    if dtype == torch.float32:
        return KeyTile(32 if head_dim <= 64 else 16, 8 if head_dim <= 128 else 16, 1)
    if head_dim > 128:
        return KeyTile(32, 8, 3 if has_wgmma else 2)
    return KeyTile(64, 4 if has_wgmma or head_dim <= 64 else 8, 3)


def has_wgmma(device: torch.device) -> bool:
    """Whether products of 64 rows are computed by four warps together."""
    return capability_of(device)[0] in (9, 10)


def attention(
    q: torch.Tensor,
    out: torch.Tensor,
    positions: torch.Tensor,
    row_offsets: torch.Tensor,
    block_tables: torch.Tensor,
    tiles: QueryTiles,
    cache: KvLayer,
    spec: AttentionSpec,
    num_splits: int,
    workspace: Workspace,
) -> None:
    """out [T, H * D] of queries q [T, H * D] over the keys and values in `cache` up to each token's position.

    `positions` int32[T] ascend by one within a row; a token at position -1 sees nothing and gets zeros. Tokens of tiles
    that do not exist are left alone. `row_offsets` is int32[R + 1], `block_tables` int32[R, B]; blocks that no token of
    a tile sees may be -1. The splits of a tile's keys are spread over up to `num_splits` programs, if their partial
    results fit into `workspace` (`attention_workspace_floats`; a counter for each tile and KV head).
    """
    assert tiles.tokens_per_tile == tokens_per_tile(spec)
    num_tokens, num_tiles = q.shape[0], tiles.rows.shape[0]
    most_splits = workspace.partials.shape[0] // attention_workspace_floats(
        num_tokens, spec.num_heads, spec.head_dim, 1
    )
    assert num_splits == 1 or workspace.counters.shape[0] >= num_tiles * spec.num_kv_heads
    tile = key_tile(spec.head_dim, cache.dtype, has_wgmma(q.device))
    launch(
        attention_kernel,
        (num_tiles, spec.num_kv_heads, num_splits),
        *(q, out, positions, row_offsets, block_tables, tiles.rows, tiles.starts, cache.slabs),
        *(workspace.partials, workspace.counters, q.stride(0), out.stride(0), block_tables.stride(0)),
        *(num_tokens, most_splits, spec.window or NO_WINDOW, cache.offset, spec.scale * math.log2(math.e)),
        G=spec.num_heads // spec.num_kv_heads,
        KV=spec.num_kv_heads,
        D=spec.head_dim,
        PADDED_D=max(MIN_PRODUCT, triton.next_power_of_2(spec.head_dim)),
        KEYS=tile.num_keys,
        DTYPE=element_type(cache.dtype),
        BLOCKS_PER_SLAB=cache.blocks_per_slab,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


@triton.jit
def rescale(old_maximum, maximum):
    """What weights relative to the old maximum are multiplied by; 0 where nothing had been seen."""
    return tl.exp2(old_maximum - tl.where(maximum == float("-inf"), 0.0, maximum))


@triton.jit
def merge(total_maximum, total_denominator, total, maximum, denominator, weighted):
    """Puts a split's result behind the total of the splits before it; exact where either of them has seen nothing."""
    new_maximum = tl.maximum(total_maximum, maximum)
    before, now = rescale(total_maximum, new_maximum), rescale(maximum, new_maximum)
    total = total * before[:, None] + weighted * now[:, None]
    return new_maximum, total_denominator * before + denominator * now, total


@triton.jit
def nothing_seen(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """(maximum, denominator, weighted values) of no keys."""
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    return maximum, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)


@triton.jit
def store_output(out, stride, tokens, heads, mask, denominator, weighted, D: tl.constexpr, PADDED_D: tl.constexpr):
    d = tl.arange(0, PADDED_D)[None, :]
    result = weighted / tl.where(denominator == 0.0, 1.0, denominator)[:, None]
    pointers = out + tokens.to(tl.int64)[:, None] * stride + heads[:, None] * D + d
    tl.store(pointers, cast(result, out.dtype.element_ty), mask=mask[:, None] & (d < D))


@triton.jit
def key_pointers(
    slabs, table, start, first_key, last_key, kv_head, offset,
    KEYS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr, BLOCKS_PER_SLAB: tl.constexpr,
):  # fmt: skip
    """Pointers to keys start:start + KEYS; where they lie outside the blocks of first_key:last_key + 1, into these."""
    key = tl.arange(0, KEYS)
    column = tl.minimum(tl.maximum(start // BLOCK + key // BLOCK, first_key // BLOCK), last_key // BLOCK)
    return key_rows(slabs, tl.load(table + column), key % BLOCK, kv_head, offset, KV, D, DTYPE, BLOCKS_PER_SLAB)


@triton.jit
def partial_rows(partials, split, tokens, heads, num_tokens, most_splits, H: tl.constexpr, D: tl.constexpr):
    """Pointers to the weighted values [D] of heads in a split, and to their maximum, which the denominator follows.

    First come the weighted values [most_splits, num_tokens, H, D], then the pairs [most_splits, num_tokens, H, 2].
    """
    number = (split * num_tokens + tokens) * H + heads
    pairs = partials + most_splits * num_tokens * H * D
    return partials + number * D, pairs + number * 2


@triton.jit
def merge_partials(
    partials, out, out_stride, start, end, num_splits, kv_head, num_tokens, most_splits,
    G: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr,
):  # fmt: skip
    """The output of tokens start:end from the partial results of all splits, ascending."""
    d = tl.arange(0, PADDED_D)[None, :]
    for first in range(0, (end - start) * G, MERGED_QUERIES):
        query = first + tl.arange(0, MERGED_QUERIES)
        tokens, heads = start + query // G, kv_head * G + query % G
        mask = tokens < end
        total_maximum, total_denominator, total = nothing_seen(MERGED_QUERIES, PADDED_D)
        for split in tl.range(0, num_splits, num_stages=MERGED_AHEAD):
            parts, pairs = partial_rows(partials, split, tokens, heads, num_tokens, most_splits, G * KV, D)
            maximum = tl.load(pairs, mask=mask, other=float("-inf"), cache_modifier=".cg")
            denominator = tl.load(pairs + 1, mask=mask, other=0.0, cache_modifier=".cg")
            weighted = tl.load(parts[:, None] + d, mask=mask[:, None] & (d < D), other=0.0, cache_modifier=".cg")
            total_maximum, total_denominator, total = merge(
                total_maximum, total_denominator, total, maximum, denominator, weighted
            )
        store_output(out, out_stride, tokens, heads, mask, total_denominator, total, D, PADDED_D)


@triton.jit(do_not_specialize=["table_stride", "num_tokens", "most_splits", "window", "offset"])
def attention_kernel(
    q, out, positions, row_offsets, block_tables, tile_rows, tile_starts, slabs, partials, counters,
    q_stride, out_stride, table_stride, num_tokens: tl.int64, most_splits: tl.int64, window: tl.int32, offset: tl.int64,
    scale,
    G: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, PADDED_D: tl.constexpr, KEYS: tl.constexpr,
    DTYPE: tl.constexpr, BLOCKS_PER_SLAB: tl.constexpr,
):  # fmt: skip
    """Program (tile, KV head, z) of NZ takes splits z, z + NZ, … of the keys that the tile sees.

    `scale` turns dot products into exponents of two. What decides between one and many programs is known on the device
    only; both ways are in one kernel, so that their arithmetic is the same to the bit.
    """
    # The last tiles of a prompt see the most keys and begin first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, z = tl.program_id(1), tl.program_id(2)
    start = tl.load(tile_starts + tile)
    if start < 0:
        return
    row = tl.load(tile_rows + tile)
    end = tl.minimum(tl.load(row_offsets + row + 1), start + QUERIES // G)
    query = tl.arange(0, QUERIES)
    tokens, heads = start + query // G, kv_head * G + query % G
    exists = tokens < end
    position = tl.load(positions + tokens, mask=exists, other=-1)
    last = tl.max(position, 0)
    first_key = tl.maximum(tl.min(tl.where(position < 0, last, position), 0) - window + 1, 0)

    first_split = first_key // SPLIT
    num_splits = (last + SPLIT) // SPLIT - first_split
    num_programs = tl.where(num_splits <= most_splits, tl.minimum(num_splits, tl.num_programs(2)), 1)
    num_programs = tl.maximum(num_programs, 1)
    if z >= num_programs:
        return
    d = tl.arange(0, PADDED_D)[None, :]
    query_rows = q + tokens.to(tl.int64)[:, None] * q_stride + heads[:, None] * D
    queries = cast(tl.load(query_rows + d, mask=exists[:, None] & (d < D), other=0.0), DTYPE)
    table = block_tables + row.to(tl.int64) * table_stride
    total_maximum, total_denominator, total = nothing_seen(QUERIES, PADDED_D)
    for split in tl.range(z, num_splits, num_programs):
        maximum, denominator, weighted = nothing_seen(QUERIES, PADDED_D)
        split_start = (first_split + split) * SPLIT
        begin = tl.maximum(split_start, first_key // KEYS * KEYS)
        stop = tl.minimum(split_start + SPLIT, last + 1)
        rows = key_pointers(slabs, table, begin, first_key, last, kv_head, offset, KEYS, KV, D, DTYPE, BLOCKS_PER_SLAB)
        for start_key in tl.range(begin, stop, KEYS):
            key = start_key + tl.arange(0, KEYS)
            loaded = ((key >= first_key) & (key <= last))[:, None] & (d < D)
            keys = tl.load(rows[:, None] + d, mask=loaded, other=0.0)
            values = tl.load(rows[:, None] + (BLOCKS_PER_SLAB * KV * BLOCK * D + d), mask=loaded, other=0.0)
            rows = key_pointers(
                slabs, table, start_key + KEYS, first_key, last, kv_head, offset, KEYS, KV, D, DTYPE, BLOCKS_PER_SLAB
            )

            scores = dot(queries, tl.trans(keys), tl.zeros((QUERIES, KEYS), tl.float32)) * scale
            distance = position[:, None] - key[None, :]
            scores = tl.where((distance >= 0) & (distance < window), scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))
            before = rescale(maximum, new_maximum)
            weights = rescale(scores, new_maximum[:, None])
            denominator = denominator * before + tl.sum(weights, 1)
            weighted = dot(cast(weights, DTYPE), values, weighted * before[:, None])
            maximum = new_maximum

        if num_programs == 1:
            total_maximum, total_denominator, total = merge(
                total_maximum, total_denominator, total, maximum, denominator, weighted
            )
        else:
            parts, pairs = partial_rows(partials, split, tokens, heads, num_tokens, most_splits, G * KV, D)
            tl.store(parts[:, None] + d, weighted, mask=exists[:, None] & (d < D))
            tl.store(pairs, maximum, mask=exists)
            tl.store(pairs + 1, denominator, mask=exists)

    if num_programs == 1:
        store_output(out, out_stride, tokens, heads, exists, total_denominator, total, D, PADDED_D)
    else:
        counter = counters + tile * KV + kv_head
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == num_programs - 1:
            tl.store(counter, 0)
            merge_partials(
                partials, out, out_stride, start, end, num_splits, kv_head, num_tokens, most_splits, G, KV, D, PADDED_D
            )
