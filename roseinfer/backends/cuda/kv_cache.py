"""Keys and values on the device, in slabs of blocks that are made when they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from roseinfer.graph import AttentionSpec

BLOCK_SIZE = 16


@dataclass(frozen=True)
class KvLayer:
    """Where one layer's keys and values lie.

    A slab is flat memory of `dtype`. In each, from element `offset` on, K [blocks_per_slab, num_kv_heads, 16, head_dim]
    and right behind it V of the same shape. Block b is number b % blocks_per_slab of slab b // blocks_per_slab.
    """

    slabs: torch.Tensor  # int64 [max_slabs], addresses on the device; 0 = not there yet
    offset: int
    blocks_per_slab: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


class KvCache:
    """`num_blocks` blocks of 16 tokens, of which `capacity` have memory; `reserve` gets more."""

    def __init__(
        self,
        specs: list[AttentionSpec],
        num_blocks: int,
        blocks_per_slab: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self._blocks_per_slab = blocks_per_slab
        self._dtype = dtype
        self._device = device
        self._slabs: list[torch.Tensor] = []
        self._addresses = torch.zeros(-(-num_blocks // blocks_per_slab), dtype=torch.int64, device=device)
        self.layers: dict[int, KvLayer] = {}
        self._slab_len = 0
        for spec in specs:
            self.layers[spec.layer] = KvLayer(
                self._addresses, self._slab_len, blocks_per_slab, spec.num_kv_heads, spec.head_dim, dtype
            )
            self._slab_len += 2 * blocks_per_slab * spec.num_kv_heads * BLOCK_SIZE * spec.head_dim

    @property
    def capacity(self) -> int:
        return min(self.num_blocks, len(self._slabs) * self._blocks_per_slab)

    @property
    def num_bytes(self) -> int:
        """Of the slabs that are there."""
        return sum(slab.nbytes for slab in self._slabs)

    @property
    def slab_bytes(self) -> int:
        return self._slab_len * self._dtype.itemsize

    def clear(self) -> None:
        self._slabs.clear()

    def reserve(self, num_blocks: int) -> int:
        """Memory for the first `num_blocks` blocks, as far as the device grants it; says how many have it now."""
        while self.capacity < min(num_blocks, self.num_blocks):
            try:
                slab = torch.empty(self._slab_len, dtype=self._dtype, device=self._device)
            except torch.OutOfMemoryError:
                break
            self._addresses[len(self._slabs)] = slab.data_ptr()
            self._slabs.append(slab)
        return self.capacity
