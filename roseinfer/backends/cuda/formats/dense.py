"""dense: the values [rows, K] in the compute dtype."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._unpack import load_columns
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor

_STORED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    stored = _STORED.get(matrix.format)
    if stored is None:
        return (torch.tensor(matrix.numpy()).to(dtype),)
    # A copy, because torch cannot view the file's memory, which is read-only.
    return (torch.from_numpy(matrix.data.copy()).view(stored).view(matrix.shape).to(dtype),)


@triton.jit
def tile(values, a1, a2, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    return cast(load_columns(values, rows, num_columns, k0 // BLOCK_K, BLOCK_K), DTYPE)
