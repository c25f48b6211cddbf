"""A step's inputs on their way to the device: a few flat arrays, one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from roseinfer.backends.cuda.kernels.attention import SPLIT_KEYS, QueryTiles, make_tiles
from roseinfer.backends.cuda.kv_cache import BLOCK_SIZE
from roseinfer.backends.cuda.stages import NUM_STAGES, copy_arrays, offsets_of
from roseinfer.core.batch import ForwardInputs, Int32Array

NO_POSITION = -1  # of a token that does not exist

DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LARGE_DECODE_STEP = 128  # between the sizes above those
CONTEXT_GROWTH = 4


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step on the device; every tensor is int32."""

    num_tokens: int
    num_logits: int
    context: int  # no token sees more positions than this
    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T], -1 for a token that does not exist
    token_rows: torch.Tensor  # [T], the row of each token
    row_offsets: torch.Tensor  # [R + 1]
    logit_rows: torch.Tensor  # [L]
    block_tables: torch.Tensor  # [R, B]
    tiles: dict[int, QueryTiles]  # by tokens per tile

    def num(self, rows: str) -> int:
        return self.num_tokens if rows == "tokens" else self.num_logits


def is_decode(inputs: ForwardInputs) -> bool:
    """Whether every row has one token, and wants its logits."""
    num_tokens = inputs.num_tokens
    return num_tokens == len(inputs.logit_rows) == len(inputs.block_tables)


def padded_decode(inputs: ForwardInputs, max_tokens: int) -> ForwardInputs:
    """The same step at one of few sizes, with tokens behind it that do not exist: one CUDA graph serves them all."""
    num_tokens = inputs.num_tokens
    large = -(-num_tokens // LARGE_DECODE_STEP) * LARGE_DECODE_STEP
    size = next((size for size in DECODE_SIZES if size >= num_tokens), large)
    size = max(min(size, max_tokens), num_tokens)
    num_columns = context_of(inputs) // BLOCK_SIZE
    block_tables = np.full((size, num_columns), -1, dtype=np.int32)
    known = inputs.block_tables[:, :num_columns]
    block_tables[:num_tokens, : known.shape[1]] = known
    return ForwardInputs(
        token_ids=_padded(inputs.token_ids, size, 0),
        positions=_padded(inputs.positions, size, NO_POSITION),
        row_offsets=np.arange(size + 1, dtype=np.int32),
        block_tables=block_tables,
        logit_rows=np.arange(size, dtype=np.int32),
    )


def context_of(inputs: ForwardInputs) -> int:
    """A bound on the positions that any token sees, one of few."""
    needed = int(inputs.positions.max(initial=0)) + 1
    context = SPLIT_KEYS
    while context < needed:
        context *= CONTEXT_GROWTH
    return context


def _padded(values: Int32Array, size: int, filler: int) -> Int32Array:
    padded = np.full(size, filler, dtype=np.int32)
    padded[: len(values)] = values
    return padded


class InputStage:
    """Memory on both sides. The device's stays where it is, until a step needs more: `put` says when it has moved."""

    def __init__(self, device: torch.device, num_numbers: int) -> None:
        self._device = device
        self._turn = 0
        self._make(num_numbers)

    def _make(self, num_numbers: int) -> None:
        is_cuda = self._device.type == "cuda"
        self._on_device = torch.zeros(num_numbers, dtype=torch.int32, device=self._device)
        self._pinned = [torch.zeros(num_numbers, dtype=torch.int32, pin_memory=is_cuda) for _ in range(NUM_STAGES)]
        self._copied = [torch.cuda.Event() if is_cuda else None for _ in range(NUM_STAGES)]

    def put(self, inputs: ForwardInputs, tile_sizes: Sequence[int]) -> tuple[StepInputs, bool]:
        """Copies on the current stream. True if what captured graphs read is no longer written."""
        lengths = np.diff(inputs.row_offsets)
        token_rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        missing = inputs.positions[inputs.row_offsets[:-1]] == NO_POSITION
        tiles = [_tiles(inputs.row_offsets, size, missing) for size in tile_sizes]
        flat = [inputs.token_ids, inputs.positions, token_rows, inputs.row_offsets, inputs.logit_rows]
        flat += [array for pair in tiles for array in pair]
        flat.append(inputs.block_tables.reshape(-1))
        views, has_moved = self._copy(flat)
        token_ids, positions, rows, offsets, logit_rows, *tile_views, tables = views
        pairs = zip(tile_views[::2], tile_views[1::2], strict=True)
        step = StepInputs(
            num_tokens=inputs.num_tokens,
            num_logits=len(inputs.logit_rows),
            context=context_of(inputs),
            token_ids=token_ids,
            positions=positions,
            token_rows=rows,
            row_offsets=offsets,
            logit_rows=logit_rows,
            block_tables=tables.view(inputs.block_tables.shape),
            tiles={size: QueryTiles(*pair, size) for size, pair in zip(tile_sizes, pairs, strict=True)},
        )
        return step, has_moved

    def _copy(self, arrays: Sequence[Int32Array]) -> tuple[list[torch.Tensor], bool]:
        offsets = offsets_of(arrays)
        has_moved = offsets[-1] > len(self._on_device)
        if has_moved:
            self._make(2 * offsets[-1])
        turn = self._turn = (self._turn + 1) % NUM_STAGES
        copied = self._copied[turn]
        if copied is not None:
            copied.synchronize()  # of the step before the last, which has long been done
        views = copy_arrays(arrays, offsets, self._pinned[turn], self._on_device)
        if copied is not None:
            copied.record()
        return views, has_moved


def _tiles(row_offsets: Int32Array, size: int, missing: npt.NDArray[np.bool_]) -> tuple[Int32Array, Int32Array]:
    """(rows, starts) of the query tiles; -1 starts the tile of a row that does not exist."""
    rows, starts = make_tiles(row_offsets, size)
    starts[missing[rows]] = -1
    return rows, starts
