"""Attention over the paged cache: what the plain one says, and for each token the same bits in any company."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.kernels.attention import (
    QueryTiles,
    attention,
    attention_workspace_floats,
    make_tiles,
    tokens_per_tile,
)
from roseinfer.backends.cuda.kernels.workspace import Workspace
from roseinfer.backends.cuda.kv_cache import BLOCK_SIZE, KvLayer
from roseinfer.backends.torch import ops
from roseinfer.core.errors import UnsupportedModelError
from roseinfer.graph import AttentionSpec

BLOCKS_PER_SLAB = 3
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Chunk = tuple[int, int, int]  # row, first position, last position + 1


@dataclass
class Requests:
    """Random queries, keys and values of some rows, and a cache that holds the keys and values between NaNs."""

    spec: AttentionSpec
    queries: list[torch.Tensor]  # float32 [length, H * D]
    keys: list[torch.Tensor]  # of the cache's dtype [length, KV, D]
    values: list[torch.Tensor]
    layer: KvLayer
    slabs: list[torch.Tensor]
    block_tables: torch.Tensor

    def output(self, chunks: list[Chunk], num_splits: int = 1, workspace: Workspace | None = None) -> torch.Tensor:
        """float32 [T, H * D] of a step with these chunks."""
        spec = self.spec
        lengths = [end - start for _, start, end in chunks]
        row_offsets = np.cumsum([0, *lengths], dtype=np.int32)
        positions = np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end in chunks])
        tiles = tiles_of(row_offsets, spec)
        q = torch.cat([self.queries[row][start:end] for row, start, end in chunks])
        workspace = workspace or workspace_for(spec, len(q), len(tiles.rows))
        out = torch.full_like(q, math.nan)
        attention(
            *(q, out, numbers(positions), numbers(row_offsets)),
            *(self.block_tables[[row for row, _, _ in chunks]], tiles, self.layer, spec, num_splits, workspace),
        )
        assert not workspace.counters.any()
        return out

    def expected(self, chunks: list[Chunk]) -> torch.Tensor:
        return torch.cat([self.expected_chunk(*chunk) for chunk in chunks])

    def expected_chunk(self, row: int, start: int, end: int) -> torch.Tensor:
        q = self.queries[row][start:end].to(self.layer.dtype).double().unflatten(1, (-1, self.spec.head_dim))
        distance = torch.arange(start, end, device=q.device)[:, None] - torch.arange(end, device=q.device)
        visible = (distance >= 0) & (distance < (self.spec.window or end))
        k, v = self.keys[row][:end].double(), self.values[row][:end].double()
        return ops.attention(q, k, v, visible, self.spec.scale).float()


def numbers(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32).to(open_device())


def tiles_of(row_offsets: np.ndarray, spec: AttentionSpec) -> QueryTiles:
    rows, starts = make_tiles(row_offsets, tokens_per_tile(spec))
    return QueryTiles(numbers(rows), numbers(starts), tokens_per_tile(spec))


def workspace_for(spec: AttentionSpec, num_tokens: int, num_tiles: int, num_splits: int = 4) -> Workspace:
    floats = attention_workspace_floats(num_tokens, spec.num_heads, spec.head_dim, num_splits)
    workspace = Workspace(open_device(), floats, num_tiles * spec.num_kv_heads)
    workspace.partials.fill_(math.nan)
    return workspace


def make_requests(
    lengths: list[int],
    *,
    group: int = 2,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    seed: int = 0,
) -> Requests:
    device, random = open_device(), torch.Generator().manual_seed(seed)
    spec = AttentionSpec(0, group * num_kv_heads, num_kv_heads, head_dim, head_dim**-0.5, window)
    queries = [3 * torch.randn(n, spec.num_heads * head_dim, generator=random).to(device) for n in lengths]
    keys, values = (
        [torch.randn(n, num_kv_heads, head_dim, generator=random).to(device, dtype) for n in lengths] for _ in range(2)
    )
    counts = [-(-n // BLOCK_SIZE) for n in lengths]
    ids = torch.randperm(sum(counts) + 2, generator=random, dtype=torch.int32)
    block_tables = torch.full((len(lengths), max(counts) + 1), -1, dtype=torch.int32)
    for row, (count, part) in enumerate(zip(counts, ids[2:].split(counts), strict=True)):
        block_tables[row, :count] = part
    slab_len = BLOCKS_PER_SLAB * num_kv_heads * BLOCK_SIZE * head_dim
    offset = 2 * slab_len  # another layer lies before this one
    slabs = [
        torch.full((2 * offset,), math.nan, dtype=dtype, device=device) for _ in range(-(-len(ids) // BLOCKS_PER_SLAB))
    ]
    addresses = torch.tensor([slab.data_ptr() for slab in slabs], device=device)
    layer = KvLayer(addresses, offset, BLOCKS_PER_SLAB, num_kv_heads, head_dim, dtype)
    requests = Requests(spec, queries, keys, values, layer, slabs, block_tables.to(device))
    for row in range(len(lengths)):
        fill(requests, row)
    return requests


def fill(requests: Requests, row: int) -> None:
    """Writes the row's keys and values to where `KvLayer` says that they lie."""
    layer = requests.layer
    shape = (2, layer.blocks_per_slab, layer.num_kv_heads, BLOCK_SIZE, layer.head_dim)
    for position, both in enumerate(zip(requests.keys[row], requests.values[row], strict=True)):
        block = int(requests.block_tables[row, position // BLOCK_SIZE])
        slab = requests.slabs[block // layer.blocks_per_slab][layer.offset :].view(shape)
        slab[:, block % layer.blocks_per_slab, :, position % BLOCK_SIZE] = torch.stack(both)


def assert_close(requests: Requests, chunks: list[Chunk]) -> None:
    tolerance = TOLERANCE[requests.layer.dtype]
    actual, expected = requests.output(chunks), requests.expected(chunks)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("group", "head_dim", "dtype"),
    [
        (1, 64, torch.bfloat16),
        (2, 80, torch.float32),
        (4, 96, torch.float16),
        (8, 128, torch.bfloat16),
        (3, 256, torch.float32),
        (2, 8, torch.float16),
    ],
)
def test_prompt_chunk_and_decode_in_one_step(group: int, head_dim: int, dtype: torch.dtype) -> None:
    requests = make_requests([21, 70, 60], group=group, head_dim=head_dim, dtype=dtype)
    assert_close(requests, [(0, 0, 21), (1, 69, 70), (2, 37, 60)])


@pytest.mark.parametrize(("window", "num_splits"), [(None, 2), (300, 7)])
def test_long_contexts(window: int | None, num_splits: int) -> None:
    requests = make_requests([580, 262, 5], window=window, num_kv_heads=1)
    chunks = [(0, 579, 580), (1, 250, 262), (2, 4, 5)]
    assert_close(requests, chunks)
    assert torch.equal(requests.output(chunks, num_splits), requests.output(chunks))


@pytest.mark.parametrize("num_splits", [1, 3])
def test_blocks_that_left_every_window_are_not_read(num_splits: int) -> None:
    requests = make_requests([600], window=70, num_kv_heads=1)
    expected = requests.output([(0, 590, 600)], num_splits)
    requests.block_tables[0, : (590 - 69) // BLOCK_SIZE] = -1
    assert torch.equal(requests.output([(0, 590, 600)], num_splits), expected)


def test_tokens_and_tiles_that_do_not_exist() -> None:
    requests = make_requests([30, 30, 30])
    spec = requests.spec
    q = torch.cat([queries[29:] for queries in requests.queries])
    out = torch.full_like(q, 7.0)
    positions = numbers([29, -1, -1])
    tiles = QueryTiles(numbers([0, 1, 2]), numbers([0, 1, -1]), tokens_per_tile(spec))
    block_tables = torch.where(positions[:, None] < 0, -1, requests.block_tables)
    workspace = workspace_for(spec, 3, 3)
    attention(q, out, positions, numbers([0, 1, 2, 3]), block_tables, tiles, requests.layer, spec, 2, workspace)
    assert torch.equal(out[:1], requests.output([(0, 29, 30)]))
    assert (out[1] == 0).all()
    assert (out[2] == 7).all()


def test_results_that_do_not_fit_into_the_workspace_are_not_split() -> None:
    requests = make_requests([520], num_kv_heads=1)
    chunk = [(0, 519, 520)]
    small = workspace_for(requests.spec, 1, 1, num_splits=2)
    assert torch.equal(requests.output(chunk, 3, small), requests.output(chunk))
    assert small.partials.isnan().all()


def test_views_with_strides_and_outputs_in_half_precision() -> None:
    requests = make_requests([40], dtype=torch.bfloat16)
    spec = requests.spec
    width = spec.num_heads * spec.head_dim
    q = torch.cat([requests.queries[0], requests.queries[0].new_full((40, 64), math.nan)], dim=1)[:, :width]
    out = q.new_full((40, width + 32), 7.0, dtype=torch.bfloat16)
    row_offsets = np.array([0, 40], dtype=np.int32)
    tiles = tiles_of(row_offsets, spec)
    attention(
        *(q, out[:, :width], numbers(range(40)), numbers(row_offsets), requests.block_tables, tiles),
        *(requests.layer, spec, 1, workspace_for(spec, 40, len(tiles.rows))),
    )
    assert torch.equal(out[:, :width], requests.output([(0, 0, 40)]).bfloat16())
    assert (out[:, width:] == 7).all()


LENGTH, COMPUTED = 266, 20  # of the row that is cut, and its last tokens, over the border of a split


@pytest.fixture(scope="module")
def in_company() -> list[tuple[Requests, torch.Tensor]]:
    """Requests, and the last tokens of the long row computed at once and alone."""
    both = [
        make_requests([LENGTH, 70], group=4, num_kv_heads=1),
        make_requests([LENGTH, 70], group=4, num_kv_heads=1, dtype=torch.bfloat16, window=100),
    ]
    return [(requests, requests.output([(0, LENGTH - COMPUTED, LENGTH)])) for requests in both]


@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    number=st.integers(0, 1),
    cuts=st.lists(st.integers(1, COMPUTED - 1), max_size=2, unique=True).map(sorted),
    num_splits=st.integers(1, 3),
    neighbours=st.lists(st.sampled_from([(1, 69, 70), (1, 17, 30)]), max_size=1),
)
def test_a_token_has_the_same_bits_in_any_company(
    in_company: list[tuple[Requests, torch.Tensor]],
    number: int,
    cuts: list[int],
    num_splits: int,
    neighbours: list[Chunk],
) -> None:
    requests, whole = in_company[number]
    bounds = [LENGTH - COMPUTED + cut for cut in [0, *cuts, COMPUTED]]
    outputs = [requests.output([*neighbours, (0, a, b)], num_splits)[-(b - a) :] for a, b in pairwise(bounds)]
    assert torch.equal(torch.cat(outputs), whole)


def test_one_token_at_a_time_has_the_same_bits(in_company: list[tuple[Requests, torch.Tensor]]) -> None:
    requests, whole = in_company[1]
    alone = [requests.output([(0, position, position + 1)]) for position in range(252, 260)]
    assert torch.equal(torch.cat(alone), whole[252 - LENGTH : 260 - LENGTH])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), size=st.sampled_from([1, 3, 8, 64]))
def test_tiles_cover_every_token_once(lengths: list[int], size: int) -> None:
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    rows, starts = make_tiles(offsets, size)
    assert rows.dtype == starts.dtype == np.int32
    covered = [
        (int(row), token)
        for row, start in zip(rows, starts, strict=True)
        for token in range(start, min(start + size, offsets[row + 1]))
    ]
    assert covered == [(row, token) for row, n in enumerate(lengths) for token in range(offsets[row], offsets[row] + n)]


@pytest.mark.parametrize(("num_heads", "head_dim"), [(65, 64), (2, 257)])
def test_shapes_that_do_not_fit_a_tile(num_heads: int, head_dim: int) -> None:
    with pytest.raises(UnsupportedModelError, match="device cuda supports up to"):
        tokens_per_tile(AttentionSpec(0, num_heads, 1, head_dim, 1.0))
