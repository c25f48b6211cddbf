"""A model's weights on the device: matrices packed for their kernels, vectors in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch

from roseinfer.backends import Progress
from roseinfer.backends.cuda.formats import PackedMatrix, layout_of, pack
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import ConfigError

CHECKED_VALUES = 1 << 24  # at a time: the check takes some bytes for each
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_dtype(dtype: str, weights: Mapping[str, Tensor]) -> torch.dtype:
    """What matrices are multiplied in. `auto` is float16 where the file has that, and bfloat16 for the rest: what it
    lacks in precision, activations that overflow half precision make up for.
    """
    if dtype != "auto":
        return DTYPES[dtype]
    sizes = {"f16": 0, "bf16": 0}
    for tensor in weights.values():
        if len(tensor.shape) == 2 and tensor.format in sizes:
            sizes[tensor.format] += tensor.data.nbytes
    return torch.bfloat16 if sizes["bf16"] >= sizes["f16"] else torch.float16


def packed_bytes(weights: Mapping[str, Tensor], dtype: torch.dtype, weight_dtype: str) -> int:
    """About what they will take on the device; a layout of its own takes some more bits than the file's."""
    total = 0.0
    for tensor in weights.values():
        layout = layout_of(tensor, dtype, weight_dtype)
        if len(tensor.shape) == 1:
            total += 4 * prod(tensor.shape)
        elif layout in ("dense", "fp8"):
            total += prod(tensor.shape) * (dtype.itemsize if layout == "dense" else 1)
        else:
            total += 1.05 * tensor.data.nbytes
    return int(total)


class Weights:
    """Places each matrix once, when it is first asked for; `progress` hears of it."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        weight_dtype: str,
        progress: Progress,
    ) -> None:
        self.dtype = dtype
        self._tensors = tensors
        self._device = device
        self._weight_dtype = weight_dtype
        self._progress = progress
        self._matrices: dict[tuple[str, ...], PackedMatrix] = {}
        self._vectors: dict[tuple[str | None, ...], torch.Tensor] = {}
        self._loaded: set[str] = set()
        self._total_bytes = sum(tensor.data.nbytes for tensor in tensors.values() if len(tensor.shape) == 2)

    @property
    def num_bytes(self) -> int:
        arrays = [array for matrix in self._matrices.values() for array in matrix.arrays]
        return sum(array.nbytes for array in (*arrays, *self._vectors.values()) if array is not None)

    def layout(self, name: str) -> str:
        return layout_of(self._tensors[name], self.dtype, self._weight_dtype)

    def matrix(self, *names: str) -> PackedMatrix:
        """Their rows, one matrix behind the other."""
        if names not in self._matrices:
            tensors = [self._tensors[name] for name in names]
            packed = pack(tensors, self.dtype, self._device, self._weight_dtype)
            self._check_finite(packed, names)
            self._matrices[names] = packed
            self._loaded.update(names)
            self._progress(sum(self._tensors[name].data.nbytes for name in self._loaded), self._total_bytes)
        return self._matrices[names]

    def vector(self, name: str) -> torch.Tensor:
        return self._vector((name,), [self._tensors[name].shape[0]])

    def joined_vector(self, names: Sequence[str | None], lengths: Sequence[int]) -> torch.Tensor | None:
        """Biases one behind the other, zeros for those that are not there; None where none is."""
        return self._vector(tuple(names), lengths) if any(names) else None

    def _vector(self, names: tuple[str | None, ...], lengths: Sequence[int]) -> torch.Tensor:
        if names not in self._vectors:
            parts = [
                torch.zeros(length) if name is None else torch.tensor(self._tensors[name].numpy(), dtype=torch.float32)
                for name, length in zip(names, lengths, strict=True)
            ]
            self._vectors[names] = torch.cat(parts).to(self._device)
        return self._vectors[names]

    def _check_finite(self, packed: PackedMatrix, names: tuple[str, ...]) -> None:
        if packed.layout != "dense" or packed.arrays[0].device.type == "meta":
            return
        for rows in packed.arrays[0].split(max(1, CHECKED_VALUES // packed.num_columns)):
            if not bool(torch.isfinite(rows).all()):
                dtype = str(self.dtype).removeprefix("torch.")
                raise ConfigError(f"tensor {', '.join(names)} has values that dtype {dtype} cannot hold")
