"""A named weight as it lies in a file: a format, a shape and bytes, usually a view into an mmap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from roseinfer.core.errors import UnsupportedModelError
from roseinfer.quant import get_format


@dataclass(frozen=True, eq=False)
class Tensor:
    """`shape` is row-major (the last axis is contiguous); `data` is uint8 of exactly the bytes the shape needs.

    Quantised formats lay their blocks along the last axis, so rows are independent and can be permuted or
    cut without touching a value.
    """

    name: str
    format: str  # a file name in roseinfer/quant: "f32", "bf16", "q4_1", ...
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def num_rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    def numpy(self) -> npt.NDArray[np.float32]:
        """The values as float32, of `shape`."""
        return get_format(self.format).dequantize(self.data).reshape(self.shape)

    def row_bytes(self) -> npt.NDArray[np.uint8]:
        """[num_rows, bytes per row], a view."""
        return self.data.reshape(self.num_rows, -1)

    def take_rows(self, rows: Sequence[int] | npt.NDArray[np.int64] | slice) -> Tensor:
        """The rows named, in that order; exact in every format. Only for tensors of one or two axes.

        A vector's elements are its rows: `UnsupportedModelError` for one that is quantised.
        """
        if len(self.shape) == 1:
            if get_format(self.format).block_size != 1:
                raise UnsupportedModelError(f"tensor {self.name} is a vector in {self.format}, which cannot be cut")
            picked = self.data.reshape(self.shape[0], -1)[rows]
            return replace(self, shape=(picked.shape[0],), data=np.ascontiguousarray(picked).reshape(-1))
        picked = self.row_bytes()[rows]
        return replace(self, shape=(picked.shape[0], *self.shape[1:]), data=np.ascontiguousarray(picked).reshape(-1))

    def renamed(self, name: str) -> Tensor:
        return replace(self, name=name)

    @staticmethod
    def from_numpy(name: str, values: npt.NDArray[np.float32]) -> Tensor:
        values = np.ascontiguousarray(values, dtype=np.float32)
        return Tensor(name, "f32", values.shape, values.reshape(-1).view(np.uint8))
