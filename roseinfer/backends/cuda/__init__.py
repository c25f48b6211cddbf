"""The CUDA backend: Triton kernels, CUDA graphs, and steps that are launched ahead of the host.

Without a GPU it runs on the CPU in Triton's interpreter (`TRITON_INTERPRET=1`), slowly, which is how it is tested.
"""

from __future__ import annotations

import os

# Triton warns where neither is chosen; kernels/launch.py turns contraction off for every kernel.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")

from roseinfer.backends.cuda.memory import check_device, choose_kv_dtype, compile, kv_block_bytes, kv_memory

DEFAULT_BATCH_TOKENS = 4096  # what keeps tensor cores busy
DEFAULT_REQUEST_TOKENS = 4096  # only what is used takes memory

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "DEFAULT_REQUEST_TOKENS",
    "check_device",
    "choose_kv_dtype",
    "compile",
    "kv_block_bytes",
    "kv_memory",
]
