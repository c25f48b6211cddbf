"""Keys and values in fixed blocks, reached only through block tables, so that a wrong table gives wrong answers."""

from __future__ import annotations

import torch
from torch import Tensor

from roseinfer.graph import AttentionSpec


class PagedKVCache:
    """Per layer, keys and values [num_blocks, block_size, KV, D]. Fresh memory is NaN: reading a slot that was never
    written poisons the logits.
    """

    def __init__(
        self,
        specs: list[AttentionSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self._layers = {
            spec.layer: torch.full(
                (2, num_blocks, block_size, spec.num_kv_heads, spec.head_dim), torch.nan, dtype=dtype, device=device
            )
            for spec in specs
        }

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())

    def store(self, layer: int, block_table: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Writes k, v [T, KV, D] of one row at its `positions` [T]."""
        blocks, slots = self._locate(layer, block_table, positions)
        cache = self._layers[layer]
        cache[0, blocks, slots] = k.to(cache.dtype)
        cache[1, blocks, slots] = v.to(cache.dtype)

    def load(self, layer: int, block_table: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [S, KV, D] of one row at `positions` [S]."""
        blocks, slots = self._locate(layer, block_table, positions)
        k, v = self._layers[layer][:, blocks, slots].to(dtype)
        return k, v

    def _locate(self, layer: int, block_table: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        blocks = block_table[positions // self.block_size]
        if bool((blocks < 0).any()):
            raise IndexError(f"layer {layer}: a position has no block in the table {block_table.tolist()}")
        return blocks, positions % self.block_size
