"""How much of the device a model takes: checked before it is loaded, and said in one line when it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from roseinfer.backends import ProgramOptions, Progress
from roseinfer.backends.cuda.compiler import Compiler
from roseinfer.backends.cuda.device import device_name, free_memory, open_device
from roseinfer.backends.cuda.kv_cache import BLOCK_SIZE, KvCache
from roseinfer.backends.cuda.program import CudaProgram
from roseinfer.backends.cuda.weights import DTYPES, Weights, compute_dtype, packed_bytes
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import ConfigError, DeviceError, DeviceLostError
from roseinfer.graph import AttentionSpec, Graph

logger = logging.getLogger(__name__)

SLAB_BYTES = 128 << 20  # by which the KV cache grows
RESERVED_BYTES = 512 << 20  # activations, graphs, and what libraries take for themselves
KV_SHARE = 0.9  # of what is free then


def check_device() -> None:
    """Raises DeviceError where there is no CUDA device, or one that is too old."""
    open_device()


def kv_block_bytes(specs: list[AttentionSpec], kv_dtype: str) -> int:
    """Bytes of one block of 16 tokens over all layers."""
    return sum(2 * BLOCK_SIZE * s.num_kv_heads * s.head_dim * _kv_dtype(kv_dtype).itemsize for s in specs)


def choose_kv_dtype(kv_dtype: str, dtype: str, isa: str, weights: Mapping[str, Tensor]) -> str:
    """`auto` is what matrices are multiplied in: attention multiplies, too."""
    if kv_dtype != "auto":
        return str(_kv_dtype(kv_dtype)).removeprefix("torch.")
    return str(compute_dtype(dtype, weights)).removeprefix("torch.")


def kv_memory(weights: Mapping[str, Tensor], dtype: str, weight_dtype: str) -> int:
    """The most bytes that an automatic KV cache may take beside these weights."""
    weight_bytes = packed_bytes(weights, compute_dtype(dtype, weights), weight_dtype)
    return max(0, int(KV_SHARE * (free_memory(open_device()) - weight_bytes - RESERVED_BYTES)))


def compile(
    graph: Graph, weights: Mapping[str, Tensor], options: ProgramOptions, progress: Progress | None = None
) -> CudaProgram:
    """Places the weights, which are the graph's, by name, and builds the program.

    Raises DeviceError without a device for them, and ConfigError where its memory is not enough.
    """
    device = open_device()
    if options.block_size != BLOCK_SIZE:
        raise ConfigError(f"block_size must be {BLOCK_SIZE} on the CUDA backend, got {options.block_size}")
    dtype, kv_dtype = compute_dtype(options.dtype, weights), _kv_dtype(options.kv_dtype)
    block_bytes = kv_block_bytes(graph.attention_specs, options.kv_dtype)
    kv_bytes = block_bytes * options.num_blocks
    # What is not there is not needed at once: the pool makes do with what it gets.
    needed_kv_bytes = min(kv_bytes, SLAB_BYTES) if options.is_restart else kv_bytes
    free_bytes = free_memory(device)
    _check_fit(device, free_bytes, packed_bytes(weights, dtype, options.weight_dtype), needed_kv_bytes, 0)
    placed = Weights(weights, dtype, device, options.weight_dtype, progress or _ignore)
    try:
        cache = KvCache(graph.attention_specs, options.num_blocks, _slab_blocks(block_bytes, options), kv_dtype, device)
        compiled = Compiler(graph, placed, options, cache.layers, device).compile()
        _check_fit(device, free_bytes, placed.num_bytes, needed_kv_bytes, compiled.activation_bytes)
        program = CudaProgram(compiled, cache, options, graph.vocab_size, placed.num_bytes, block_bytes, device)
        program.reserve(1)
        if device.type == "cuda":
            program.warm_up()
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"{device_name(device)} has {_gib(free_bytes)} free, which is not enough for the weights and activations; "
            "lower --max-batch-tokens or choose a smaller model"
        ) from None
    except DeviceLostError as error:
        raise DeviceError(f"{device_name(device)} cannot run the kernels: {error}") from error
    taken = placed.num_bytes + compiled.activation_bytes
    logger.info(
        "%s: weights %s, activations %s, KV cache up to %s, grown by %s; %s of %s stay free",
        program.device_name,
        *map(_gib, (placed.num_bytes, compiled.activation_bytes, kv_bytes, cache.slab_bytes)),
        *map(_gib, (max(0, free_bytes - taken - kv_bytes), free_bytes)),
    )
    return program


def _check_fit(device: torch.device, free_bytes: int, weight_bytes: int, kv_bytes: int, activation_bytes: int) -> None:
    needed = weight_bytes + kv_bytes + activation_bytes
    if needed > free_bytes:
        raise ConfigError(
            f"{device_name(device)} has {_gib(free_bytes)} free, and {_gib(needed)} are needed: weights "
            f"{_gib(weight_bytes)}, KV cache up to {_gib(kv_bytes)}, activations {_gib(activation_bytes)}; "
            "lower --kv-cache-memory or --max-batch-tokens, or use --device cpu"
        )


def _slab_blocks(block_bytes: int, options: ProgramOptions) -> int:
    """Of slabs that are about equal, so that the last one has hardly more blocks than there are."""
    most = max(1, SLAB_BYTES // max(block_bytes, 1))
    num_slabs = -(-options.num_blocks // most)
    return -(-options.num_blocks // num_slabs)


def _kv_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"kv_dtype must be one of {', '.join(DTYPES)} on the CUDA backend, got {name!r}")
    return DTYPES[name]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"


def _ignore(loaded_bytes: int, total_bytes: int) -> None:
    pass
