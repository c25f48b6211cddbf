"""roseinfer's CPU kernels"""

from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

KV_BLOCK: int = 16

MAX_HEAD_DIM: int = 256

def cpu_features() -> dict[str, bool]: ...
def available_isas() -> list[str]: ...
def isa(isa: str = "auto") -> str: ...
def has_bf16_dot(arg: str, /) -> bool: ...
def q8_row_bytes(arg: int, /) -> int: ...
def bf16_row_bytes(arg: int, /) -> int: ...
def padded_head_dim(arg: int, /) -> int: ...
def tile_bytes(arg0: str, arg1: int, /) -> int: ...
def philox(
    arg0: NDArray[numpy.uint32],
    arg1: NDArray[numpy.uint32],
    /,
) -> NDArray[numpy.uint32]: ...
def pack(
    arg0: str,
    arg1: int,
    arg2: int,
    arg3: NDArray[numpy.uint8],
    arg4: ThreadPool,
    /,
) -> PackedWeight: ...
def linear(
    isa: str,
    weight: PackedWeight,
    x: NDArray[numpy.float32],
    act: str,
    pool: ThreadPool,
    repeat: int = 1,
) -> NDArray[numpy.float32]: ...

class ThreadPool:
    def __init__(self, arg: int, /) -> None: ...
    def size(self) -> int: ...

class PackedWeight:
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def unpack(self) -> NDArray[numpy.float32]: ...

class Buffer:
    def __init__(self, offset: int = -1, width: int = 0) -> None: ...
    @property
    def offset(self) -> int: ...
    @property
    def width(self) -> int: ...

class Program:
    def __init__(
        self,
        isa: str,
        pool: ThreadPool,
        max_tokens: int,
        max_logits: int,
        num_blocks: int,
        block_bytes: int,
        kv_dtype: str,
        arena_bytes: int,
        vocab_size: int,
        max_positions: int,
        logits: Buffer,
    ) -> None: ...
    def add_rope(self, arg0: Sequence[float], arg1: float, /) -> int: ...
    def add_embedding(self, arg0: PackedWeight, arg1: Buffer, arg2: float, arg3: bool, /) -> None: ...
    def add_norm(
        self,
        x: Buffer,
        out: Buffer,
        q8: Buffer,
        bf16: Buffer,
        weight: NDArray[numpy.float32],
        bias: NDArray[numpy.float32] | None,
        eps: float,
        num_heads: int,
        rows: int,
    ) -> None: ...
    def add_prepare(self, arg0: Buffer, arg1: Buffer, arg2: Buffer, arg3: int, /) -> None: ...
    def add_linear(
        self,
        arg0: Buffer,
        arg1: str,
        arg2: int,
        arg3: list[Any],
        arg4: list[Any],
        arg5: Sequence[Buffer],
        arg6: str,
        arg7: str,
        arg8: Buffer,
        /,
    ) -> None: ...
    def add_store_kv(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        num_heads: int,
        kv_offset: int,
        num_kv_heads: int,
        head_dim: int,
        q_norm: NDArray[numpy.float32] | None,
        k_norm: NDArray[numpy.float32] | None,
        eps: float,
        rope: int,
    ) -> None: ...
    def add_attention(
        self, arg0: Buffer, arg1: Buffer, arg2: int, arg3: int, arg4: int, arg5: int, arg6: float, arg7: int, /
    ) -> None: ...
    def add_add(self, arg0: Buffer, arg1: Buffer, arg2: Buffer, arg3: int, /) -> None: ...
    def add_activate(self, arg0: Buffer, arg1: Buffer, arg2: str, arg3: int, /) -> None: ...
    def add_gated(self, arg0: Buffer, arg1: Buffer, arg2: Buffer, arg3: str, arg4: int, /) -> None: ...
    def add_rope_op(self, arg0: Buffer, arg1: Buffer, arg2: int, arg3: int, /) -> None: ...
    def add_take_rows(self, arg0: Buffer, arg1: Buffer, /) -> None: ...
    def forward(
        self,
        arg0: NDArray[numpy.int32],
        arg1: NDArray[numpy.int32],
        arg2: NDArray[numpy.int32],
        arg3: NDArray[numpy.int32],
        arg4: NDArray[numpy.int32],
        /,
    ) -> None: ...
    def sample(
        self,
        arg0: NDArray[numpy.int32],
        arg1: NDArray[numpy.float32],
        arg2: NDArray[numpy.int32],
        arg3: NDArray[numpy.float32],
        arg4: NDArray[numpy.float32],
        arg5: NDArray[numpy.uint64],
        arg6: NDArray[numpy.int32],
        arg7: NDArray[numpy.int64],
        arg8: NDArray[numpy.int32],
        /,
    ) -> tuple[Any, Any, list[Any], list[Any]]: ...
    def logits(self) -> NDArray[numpy.float32]: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
