"""fp8: e4m3 (OCP 8-bit floating point) as the bytes uint8[rows, K], one scale float32[rows, 1] per row: x = scale * q.

Quantising is ours, so this is the one layout that is not exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from roseinfer.backends.cuda.formats._unpack import load_columns
from roseinfer.backends.cuda.kernels.arithmetic import cast
from roseinfer.checkpoints.tensor import Tensor

_LARGEST = 448.0


def pack(matrix: Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    values = torch.tensor(matrix.numpy())
    scales = values.abs().amax(dim=1, keepdim=True) / _LARGEST
    q = (values / torch.where(scales > 0, scales, 1.0)).clamp(-_LARGEST, _LARGEST)
    return q.to(torch.float8_e4m3fn).view(torch.uint8), scales


@triton.jit
def _e4m3_as_float(bits):
    """Moves the fields to where float32 has them and makes up for its bias, 120 larger; right for subnormals, too."""
    bits = bits.to(tl.int32)
    return (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2**120


@triton.jit
def tile(values, scales, a2, a3, rows, k0, num_columns, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    q = _e4m3_as_float(load_columns(values, rows, num_columns, k0 // BLOCK_K, BLOCK_K))
    return cast(q * tl.load(scales + rows)[:, None], DTYPE)
