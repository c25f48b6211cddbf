"""The CPU backend: a graph becomes a flat program of C++ kernels over weights that stay packed."""

from roseinfer.backends.native.compiler import compile, kv_block_bytes
from roseinfer.backends.native.program import NativeProgram
from roseinfer.backends.native.sizing import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_REQUEST_TOKENS,
    check_device,
    choose_kv_dtype,
    kv_memory,
)

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "DEFAULT_REQUEST_TOKENS",
    "NativeProgram",
    "check_device",
    "choose_kv_dtype",
    "compile",
    "kv_block_bytes",
    "kv_memory",
]
