"""What an engine on the CPU is sized by where its settings leave it open."""

from __future__ import annotations

from collections.abc import Mapping

from roseinfer.backends.native.compiler import fastest_kv_dtype
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.machine import usable_memory

DEFAULT_BATCH_TOKENS = 512
DEFAULT_REQUEST_TOKENS = 512
MAX_MEMORY_SHARE = 4  # the automatic KV cache takes at most this part of the machine's memory


def check_device() -> None:
    """There is always a CPU."""


def choose_kv_dtype(kv_dtype: str, dtype: str, isa: str, weights: Mapping[str, Tensor]) -> str:
    """Auto is the precision that was asked for, if any, otherwise what attention is fastest with."""
    if kv_dtype != "auto":
        return kv_dtype
    return fastest_kv_dtype(isa) if dtype == "auto" else dtype


def kv_memory(weights: Mapping[str, Tensor], dtype: str, weight_dtype: str) -> int:
    """A part of the machine's memory, of which no more is committed than is used."""
    return usable_memory() // MAX_MEMORY_SHARE
