"""How matrices lie in the device's memory: one file per layout, found by name.

A layout defines `pack(matrix, dtype) -> arrays` (torch, on the CPU, the same rows as the matrix) and a Triton function

    tile(a0, a1, a2, a3, rows, k0, num_columns, BLOCK_K, DTYPE)

which gives the matrix at [rows, k0 : k0 + BLOCK_K] in DTYPE, zeros behind the last column: computed in float32 as
`roseinfer.quant` does it, then rounded. `k0` is a multiple of BLOCK_K, a power of two from 64 to 256.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import ConfigError

_CHUNK_VALUES = 1 << 24  # packed at a time, so that a matrix is never in memory twice
_UNQUANTISED = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class PackedMatrix:
    """[num_rows, num_columns]; `arrays` as the layout's file says, `dtype` is what products are computed in."""

    layout: str
    num_rows: int
    num_columns: int
    dtype: torch.dtype
    arrays: tuple[torch.Tensor, ...]
    tile: Any

    @property
    def pointers(self) -> tuple[torch.Tensor, ...]:
        """The first four arguments of `tile`."""
        return self.arrays + self.arrays[:1] * (4 - len(self.arrays))


@cache
def layouts() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def layout_of(tensor: Tensor, dtype: torch.dtype, weight_dtype: str = "auto") -> str:
    """The file's format where it has a layout, else dense; `weight_dtype` "fp8" quantises what the file does not."""
    if weight_dtype not in ("auto", "fp8"):
        raise ConfigError(f"weight dtype {weight_dtype!r} is not known to device cuda (known: auto, fp8)")
    if tensor.format in _UNQUANTISED:
        return "fp8" if weight_dtype == "fp8" else "dense"
    return tensor.format if tensor.format in layouts() else "dense"


def pack(
    tensors: Sequence[Tensor], dtype: torch.dtype, device: torch.device | str, weight_dtype: str = "auto"
) -> PackedMatrix:
    """The rows of matrices of one layout and width, one behind the other."""
    (layout,) = {layout_of(tensor, dtype, weight_dtype) for tensor in tensors}
    (num_columns,) = {tensor.shape[-1] for tensor in tensors}
    num_rows = sum(tensor.num_rows for tensor in tensors)
    module: Any = importlib.import_module(f"{__name__}.{layout}")
    arrays: tuple[torch.Tensor, ...] = ()
    first = 0
    for chunk in _chunks(tensors):
        packed = module.pack(chunk, dtype)
        arrays = arrays or tuple(torch.empty((num_rows, *p.shape[1:]), dtype=p.dtype, device=device) for p in packed)
        for array, part in zip(arrays, packed, strict=True):
            array[first : first + chunk.num_rows].copy_(part)
        first += chunk.num_rows
    return PackedMatrix(layout, num_rows, num_columns, dtype, arrays, module.tile)


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        step = max(1, _CHUNK_VALUES // tensor.shape[-1])
        for first in range(0, tensor.num_rows, step):
            yield tensor.take_rows(slice(first, first + step))
