"""Head norm, rope and the way into the cache, against the plain operations in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.kernels.store_kv import store_kv
from roseinfer.backends.cuda.kv_cache import BLOCK_SIZE, KvCache
from roseinfer.backends.torch import ops
from roseinfer.graph import AttentionSpec, RopeSpec

NUM_BLOCKS, BLOCKS_PER_SLAB = 7, 3
EPS = 1e-5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass
class Step:
    """Four tokens of two rows, one of which does not exist, and a cache of two layers."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    positions: torch.Tensor
    token_rows: torch.Tensor
    block_tables: torch.Tensor
    cache: KvCache
    num_heads: int


def make_step(group: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> Step:
    device, random = open_device(), torch.Generator().manual_seed(group * head_dim)
    num_heads = group * num_kv_heads
    specs = [AttentionSpec(layer, num_heads, num_kv_heads, head_dim, 1.0) for layer in range(2)]
    cache = KvCache(specs, NUM_BLOCKS, BLOCKS_PER_SLAB, dtype, device)
    cache.reserve(NUM_BLOCKS)
    for slab in cache._slabs:
        slab.zero_()
    width = (num_heads + 2 * num_kv_heads) * head_dim
    joined = torch.randn(4, width + 5, generator=random).to(device)  # of one linear, as programs lay them out
    q, k, v, _ = joined.split([num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim, 5], dim=1)
    return Step(
        *(q, k, v),
        positions=torch.tensor([30, 31, 32, -1], dtype=torch.int32, device=device),
        token_rows=torch.tensor([1, 1, 1, 0], dtype=torch.int32, device=device),
        block_tables=torch.tensor([[0, 0, 0], [2, 6, 4]], dtype=torch.int32, device=device),
        cache=cache,
        num_heads=num_heads,
    )


def stored(step: Step, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [num_blocks * 16, KV * D] of a layer, in the order of the blocks."""
    where = step.cache.layers[layer]
    shape = (2, where.blocks_per_slab, where.num_kv_heads, BLOCK_SIZE, where.head_dim)
    parts = [slab[where.offset :][: math.prod(shape)].view(shape) for slab in step.cache._slabs]
    keys, values = torch.cat(parts, dim=1).transpose(2, 3).flatten(1, 2).flatten(2)
    return keys, values


def normed_and_turned(
    x: torch.Tensor, positions: torch.Tensor, num_heads: int, spec: RopeSpec | None, norm: torch.Tensor | None
) -> torch.Tensor:
    x = x.double()
    if norm is not None:
        x = ops.rms_norm(x, norm.double(), EPS, num_heads)
    return x if spec is None else ops.rope(x, positions, spec, num_heads)


SLOTS = [6 * BLOCK_SIZE + 14, 6 * BLOCK_SIZE + 15, 4 * BLOCK_SIZE]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("group", "head_dim", "half", "has_norm"),
    [
        (1, 64, 0, False),
        (2, 64, 32, False),
        (3, 80, 16, True),
        (4, 96, 48, True),
        (8, 128, 64, True),
        (1, 256, 0, True),
    ],
)
def test_queries_keys_and_values(dtype: torch.dtype, group: int, head_dim: int, half: int, has_norm: bool) -> None:
    step = make_step(group, 2, head_dim, dtype)
    spec = RopeSpec(tuple(10000 ** (-i / half) for i in range(half)), 1.3) if half else None
    q_norm, k_norm = torch.rand(2, head_dim, device=step.q.device) + 0.5 if has_norm else (None, None)
    q, k, v = step.q.clone(), step.k.clone(), step.v.clone()
    store_kv(
        *(step.q, step.k, step.v, step.positions, step.token_rows, step.block_tables, step.cache.layers[1]),
        inv_freq=torch.tensor(spec.inv_freq, dtype=torch.float64, device=step.q.device) if spec else None,
        rope_scale=spec.scale if spec else 1.0,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=EPS,
    )
    exact = {"atol": 3e-6, "rtol": 3e-6, "check_dtype": False}
    positions = step.positions[:3]
    torch.testing.assert_close(step.q[:3], normed_and_turned(q[:3], positions, 2 * group, spec, q_norm), **exact)
    assert torch.equal(step.q[3], q[3])
    assert torch.equal(step.k, k)
    assert torch.equal(step.v, v)

    keys, values = stored(step, 1)
    expected = normed_and_turned(k[:3], positions, 2, spec, k_norm)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(keys[SLOTS].double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(values[SLOTS], v[:3].to(dtype))
    others = [i for i in range(len(keys)) if i not in SLOTS]
    assert not keys[others].any()
    assert not values[others].any()
    assert not any(cached.any() for cached in stored(step, 0))


def test_far_positions_turn_as_exactly_as_near_ones() -> None:
    step = make_step(1, 1, 64, torch.float32)
    spec = RopeSpec(tuple(500000 ** (-i / 32) for i in range(32)))
    step.positions[0] = 1_000_003
    step.block_tables = step.block_tables.new_zeros(2, 1_000_003 // BLOCK_SIZE + 1)
    expected = ops.rope(step.q[:1].double(), step.positions[:1], spec, 1)
    store_kv(
        *(step.q, step.k, step.v, step.positions, step.token_rows, step.block_tables, step.cache.layers[0]),
        inv_freq=torch.tensor(spec.inv_freq, dtype=torch.float64, device=step.q.device),
    )
    torch.testing.assert_close(step.q[:1].double(), expected, atol=2e-6, rtol=2e-6)


def test_a_token_has_the_same_bits_alone() -> None:
    together, alone = (make_step(4, 2, 64, torch.float32) for _ in range(2))
    device = together.q.device
    settings = {
        "inv_freq": torch.tensor([10000 ** (-i / 32) for i in range(32)], dtype=torch.float64, device=device),
        "q_norm": torch.ones(64, device=device),
        "k_norm": torch.ones(64, device=device),
        "eps": EPS,
    }
    for step, tokens in ((together, slice(0, 4)), (alone, slice(1, 2))):
        inputs = (step.q, step.k, step.v, step.positions, step.token_rows)
        store_kv(*(tensor[tokens] for tensor in inputs), step.block_tables, step.cache.layers[0], **settings)
    assert torch.equal(together.q[1], alone.q[1])
    assert torch.equal(stored(together, 0)[0][SLOTS[1]], stored(alone, 0)[0][SLOTS[1]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cached_values_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    step = make_step(1, 2, 64, dtype)
    store_kv(step.q, step.k, step.v, step.positions, step.token_rows, step.block_tables, step.cache.layers[0])
    keys, values = stored(step, 0)
    assert torch.equal(keys[SLOTS], step.k[:3].to(dtype))
    assert torch.equal(values[SLOTS], step.v[:3].to(dtype))
