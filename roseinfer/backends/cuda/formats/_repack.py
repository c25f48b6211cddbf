"""The bytes of a file's blocks → the arrays that tiles read: values in their order, scales in rows of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def as_rows(values: npt.NDArray[Any], num_rows: int, multiple: int = 1) -> torch.Tensor:
    """`values`, row behind row, as [num_rows, n], with zeros behind each row up to a multiple of `multiple`."""
    rows = values.reshape(num_rows, -1)
    padding = -rows.shape[1] % multiple
    return torch.from_numpy(np.pad(rows, ((0, 0), (0, padding))))


def as_words(values: npt.NDArray[Any], num_rows: int) -> torch.Tensor:
    """`as_rows` in words of four bytes, which is the least that GPUs copy asynchronously."""
    multiple = 4 // values.dtype.itemsize
    rows = as_rows(values, num_rows, multiple)
    return rows.view(torch.int32)


def pair_nibbles(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[n, k] values of four bits → [n, k / 2] bytes, values 2 j (low) and 2 j + 1 in byte j."""
    return values[:, 0::2] | (values[:, 1::2] << np.uint8(4))


def pair_halves(low: npt.NDArray[np.float16], high: npt.NDArray[np.float16]) -> npt.NDArray[np.int32]:
    """Two float16 each in an int32."""
    return np.stack([low, high], axis=-1).view("<i4")
