"""roseinfer's CPU kernels"""

from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from roseinfer.core.batch import LogitEdits

KV_BLOCK: int = 16

MAX_HEAD_DIM: int = 256

def cpu_features() -> dict[str, bool]: ...
def available_isas() -> list[str]: ...
def isa(isa: str = "auto") -> str: ...
def has_bf16_dot(isa: str, /) -> bool: ...
def panels_bytes(type: str, rows: int, columns: int, /) -> int: ...
def kv_head_bytes(type: str, head_dim: int, /) -> int: ...
def philox(
    counter: NDArray[numpy.uint32],
    key: NDArray[numpy.uint32],
    /,
) -> NDArray[numpy.uint32]: ...
def pack(
    format: str,
    rows: int,
    columns: int,
    source: NDArray[numpy.uint8],
    pool: ThreadPool,
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
def peak_kinds(isa: str) -> list[str]: ...
def measure_peak(kind: str, isa: str, pool: ThreadPool, seconds: float, bytes: int = 536870912) -> float: ...

class ThreadPool:
    def __init__(self, num_threads: int, /) -> None: ...
    def size(self) -> int: ...
    def count_progress(self, counter: NDArray[numpy.uint64], /) -> None: ...

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

class Output:
    def __init__(self, floats: Buffer, f32: Buffer, q8: Buffer, bf16: Buffer) -> None: ...

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
        kv_fd: int = ...,
        kv_offset: int = ...,
    ) -> None: ...
    def add_rope(self, inv_freq: Sequence[float], scale: float, /) -> int: ...
    def add_embedding(self, weight: PackedWeight, out: Buffer, scale: float, by_position: bool, /) -> None: ...
    def add_norm(
        self,
        x: Buffer,
        out: Output,
        weight: NDArray[numpy.float32],
        bias: NDArray[numpy.float32] | None,
        eps: float,
        num_heads: int,
        rows: int,
    ) -> None: ...
    def add_prepare(self, x: Buffer, out: Output, rows: int, /) -> None: ...
    def add_linear(
        self,
        x: Buffer,
        type: str,
        rows: int,
        weights: list[Any],
        biases: list[Any],
        outs: Sequence[Output],
        combine: str,
        act: str,
        residual: Buffer,
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
        self,
        q: Buffer,
        out: Output,
        num_heads: int,
        kv_offset: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        window: int,
        /,
    ) -> None: ...
    def add_add(self, a: Buffer, b: Buffer, out: Buffer, rows: int, /) -> None: ...
    def add_activate(self, x: Buffer, out: Buffer, act: str, rows: int, /) -> None: ...
    def add_gated(self, gate: Buffer, up: Buffer, out: Buffer, act: str, rows: int, /) -> None: ...
    def add_rope_op(self, x: Buffer, out: Buffer, rope: int, num_heads: int, /) -> None: ...
    def add_take_rows(self, x: Buffer, out: Buffer, /) -> None: ...
    def forward(
        self,
        token_ids: NDArray[numpy.int32],
        positions: NDArray[numpy.int32],
        row_offsets: NDArray[numpy.int32],
        block_tables: NDArray[numpy.int32],
        logit_rows: NDArray[numpy.int32],
        /,
    ) -> None: ...
    def sample(
        self,
        rows: NDArray[numpy.int32],
        temperatures: NDArray[numpy.float32],
        top_ks: NDArray[numpy.int32],
        top_ps: NDArray[numpy.float32],
        min_ps: NDArray[numpy.float32],
        seeds: NDArray[numpy.uint64],
        choices: NDArray[numpy.int32],
        positions: NDArray[numpy.int64],
        num_logprobs: NDArray[numpy.int32],
        edits: LogitEdits | None = None,
    ) -> tuple[Any, Any, list[Any], list[Any]]: ...
    def score(
        self,
        rows: NDArray[numpy.int32],
        token_ids: NDArray[numpy.int32],
        num_logprobs: NDArray[numpy.int32],
        /,
    ) -> tuple[Any, Any, list[Any], list[Any]]: ...
    def logits(self) -> NDArray[numpy.float32]: ...
    def start_profile(self) -> None: ...
    def profile(self) -> list[tuple[str, int, float]]: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
