"""From a checkpoint to an engine that is ready to step: model, memory plan, program, scheduler."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import roseinfer
from roseinfer.backends import Backend, KvFile, Program, ProgramOptions, Progress, backend_module
from roseinfer.cache.block_pool import BlockPool, Reserve
from roseinfer.cache.kept_blocks import KeptBlocks
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.checkpoints import Checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import UInt64Array
from roseinfer.core.errors import ConfigError, DeviceError
from roseinfer.engine.device import choose_backend
from roseinfer.engine.engine import Engine
from roseinfer.engine.model_info import ModelInfo
from roseinfer.models import Model, load_model
from roseinfer.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from roseinfer.constraints import GrammarCompiler

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
NUM_SCORE_ROWS = 32  # rows of logits for prompts' logprobs, beside those that running requests sample from
DIGESTED_BYTES = 64  # at each end of a tensor
MAX_KEPT_BYTES = 16 << 20  # of a model file, while it is loaded

Wrap = Callable[[Program], Program]


def unwrapped(program: Program) -> Program:
    return program


def build_engine(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weight_dtype: str = "auto",
    kv_dtype: str = "auto",
    num_threads: int = 0,
    isa: str = "auto",
    max_model_len: int | None = None,
    max_batch_tokens: int | None = None,
    max_running: int = 64,
    kv_cache_memory: int | None = None,
    prefix_cache: bool = True,
    fast: bool = False,
    grammars: GrammarCompiler | None = None,
    progress: Progress | None = None,
    progress_counter: UInt64Array | None = None,
    cache_fd: int | None = None,
    wrap: Wrap = unwrapped,
    is_restart: bool = False,
) -> tuple[Engine, ModelInfo]:
    """Loads the checkpoint's weights; it may be closed afterwards.

    `kv_cache_memory` bounds the KV cache in bytes; None gives every one of `max_running` requests some tokens, or
    one request the whole context; how many, and within what, is the backend's. Memory is committed when it is used.
    `max_batch_tokens`: None is the backend's default. `num_threads` and `isa` are the CPU's, `fast` is a GPU's.
    `progress_counter` [1] is raised while kernels compute. `cache_fd` is a file in memory for the CPU's KV cache, with
    what an engine before this one has left there. `wrap` may put a program of its own around the model's.
    Raises ConfigError for settings that do not fit the model or the device, CheckpointError for the model itself.
    """
    backend_name, backend = _open_backend(device)
    model = load_model(checkpoint)
    max_batch_tokens = max_batch_tokens or backend.DEFAULT_BATCH_TOKENS
    kv_dtype = backend.choose_kv_dtype(kv_dtype, dtype, isa, model.weights)
    context = _context(model, max_model_len)
    block_bytes = backend.kv_block_bytes(model.graph.attention_specs, kv_dtype)
    if kv_cache_memory is None:
        num_tokens = max(context, max_running * backend.DEFAULT_REQUEST_TOKENS)
        allowed = backend.kv_memory(model.weights, dtype, weight_dtype)
        if is_restart:
            allowed = max(allowed, block_bytes)  # where it is not there, `reserve` will say so
        kv_cache_memory = _automatic_memory(-(-num_tokens // BLOCK_SIZE) * block_bytes, allowed, block_bytes)
    num_blocks = _num_blocks(block_bytes, kv_cache_memory)
    if max_model_len is not None and num_blocks * BLOCK_SIZE < max_model_len:
        need = -(-max_model_len // BLOCK_SIZE) * block_bytes
        raise ConfigError(f"max_model_len {max_model_len} needs a kv_cache_memory of at least {need} bytes")
    digest = model_digest(model)
    kept = None
    if cache_fd is not None and prefix_cache and backend_name == "native":
        identity = f"{roseinfer.__version__} {digest} {dtype} {kv_dtype} {isa} {num_blocks} {block_bytes}"
        kept = _keep_blocks(cache_fd, identity, num_blocks, block_bytes)
    options = ProgramOptions(
        num_blocks=num_blocks,
        max_batch_tokens=max_batch_tokens,
        max_logit_rows=min(max_running + NUM_SCORE_ROWS, max_batch_tokens),
        block_size=BLOCK_SIZE,
        dtype=dtype,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        num_threads=num_threads,
        isa=isa,
        fast=fast,
        is_restart=is_restart,
        progress_counter=progress_counter,
        kv_file=KvFile(kept.fd, kept.offset) if kept else None,
    )
    program = backend.compile(model.graph, model.weights, options, _forgetting(checkpoint, progress))
    if kept:
        kept.close_file()
    pool = BlockPool(num_blocks, BLOCK_SIZE, kept, _reserve_of(program))
    scheduler = Scheduler(
        block_pool=pool,
        prefix_cache=PrefixCache(pool) if prefix_cache else None,
        max_batch_tokens=max_batch_tokens,
        max_running=min(max_running, max_batch_tokens),
        max_model_len=context,
        max_logit_rows=options.max_logit_rows,
    )
    if scheduler.max_model_len < context:
        cut = "the KV cache holds %d tokens, so the context is cut to that from %d; see --kv-cache-memory"
        logger.warning(cut, scheduler.max_model_len, context)
    engine = Engine(wrap(program), scheduler, grammars, progress_counter)
    info = ModelInfo(
        name=model_name(checkpoint),
        file=tellable(Path(checkpoint.path).name),
        container=checkpoint.container,
        architecture=checkpoint.architecture,
        formats=weight_formats(model.weights),
        num_parameters=num_parameters(model.weights),
        vocab_size=model.graph.vocab_size,
        max_model_len=scheduler.max_model_len,
        eos_ids=tuple(i for i in model.eos_ids if i < model.graph.vocab_size),
        memory={**program.memory(), "kv_cache": num_blocks * block_bytes},
        device=str(getattr(program, "device_name", "cpu")),
        isa=str(getattr(program, "isa", "")),
        dtype=dtype,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        fast=fast,
        digest=digest,
    )
    return engine, info


def model_digest(model: Model) -> str:
    """Tells models apart: what is computed, and of every tensor its name, format, shape, and the bytes at its ends.

    All bytes would take as long to read as the model takes to load.
    """
    digest = hashlib.sha256(repr(model.graph.ops).encode())
    for name, tensor in sorted(model.weights.items()):
        digest.update(f"{name} {tensor.format} {tensor.shape}".encode())
        digest.update(tensor.data[:DIGESTED_BYTES].tobytes() + tensor.data[-DIGESTED_BYTES:].tobytes())
    return digest.hexdigest()[:16]


def _forgetting(checkpoint: Checkpoint, progress: Progress | None) -> Progress:
    """Keeps the file from filling memory beside the weights that are made from it."""
    kept_from = 0

    def report(loaded_bytes: int, total_bytes: int) -> None:
        nonlocal kept_from
        if loaded_bytes - kept_from >= MAX_KEPT_BYTES:
            checkpoint.forget_pages()
            kept_from = loaded_bytes
        if progress:
            progress(loaded_bytes, total_bytes)

    return report


def model_name(checkpoint: Checkpoint) -> str:
    """What people call it: the file's name; what files say of themselves is often a training run's."""
    path = Path(checkpoint.path)
    return tellable(path.name if path.is_dir() else path.stem)


def tellable(text: str) -> str:
    """File names need not be UTF-8; what is said of them has to be."""
    return text.encode("utf-8", "backslashreplace").decode()


def weight_formats(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Per format: how many tensors, and their bytes; the most bytes first."""
    tensors = Counter(tensor.format for tensor in weights.values())
    sizes: Counter[str] = Counter()
    for tensor in weights.values():
        sizes[tensor.format] += tensor.data.nbytes
    return {name: (tensors[name], size) for name, size in sizes.most_common()}


def num_parameters(weights: Mapping[str, Tensor]) -> int:
    return sum(prod(tensor.shape) for tensor in weights.values())


def _keep_blocks(fd: int, identity: str, num_blocks: int, block_bytes: int) -> KeptBlocks | None:
    try:
        return KeptBlocks(fd, hashlib.sha256(identity.encode()).digest(), num_blocks, block_bytes)
    except OSError as error:
        logger.warning("the KV cache will not outlive the engine: %s", error)
        return None


def _open_backend(device: str) -> tuple[str, Backend]:
    """By name; auto goes on with the CPU where there is a GPU that cannot be used."""
    name = choose_backend(device)
    try:
        backend = backend_module(name)
        backend.check_device()
    except DeviceError as error:
        if device != "auto" or name == "native":
            raise
        logger.warning("%s; going on with the CPU", error)
        return "native", backend_module("native")
    return name, backend


def _reserve_of(program: Program) -> Reserve | None:
    """Raises ConfigError if the device does not even have memory for one block."""
    reserve: Reserve | None = getattr(program, "reserve", None)
    if reserve is not None and reserve(1) < 1:
        program.close()
        raise ConfigError("beside the weights the device has no memory left for a KV cache")
    return reserve


def _context(model: Model, max_model_len: int | None) -> int:
    if max_model_len is not None and max_model_len > model.max_model_len:
        raise ConfigError(f"max_model_len {max_model_len} is above the model's {model.max_model_len}")
    return max_model_len or model.max_model_len


def _automatic_memory(wanted: int, allowed: int, block_bytes: int) -> int:
    """Bytes for the KV cache: those wanted, or as many as the backend allows."""
    if allowed < block_bytes:
        raise ConfigError("beside the model's weights there is no memory left for a KV cache")
    return min(wanted, allowed)


def _num_blocks(block_bytes: int, kv_cache_memory: int) -> int:
    if kv_cache_memory < block_bytes:
        raise ConfigError(f"kv_cache_memory must be at least one block, {block_bytes} bytes, got {kv_cache_memory}")
    return min(int(kv_cache_memory // block_bytes), 2**31 - 1)
