"""An engine as a `LoadModel` asks for it, with the grammars that it compiles; in whichever process."""

from __future__ import annotations

from collections.abc import Callable

from roseinfer.backends import Progress
from roseinfer.checkpoints import Checkpoint
from roseinfer.constraints.compiler import GrammarCompiler
from roseinfer.constraints.token_table import TokenTable
from roseinfer.core.batch import UInt64Array
from roseinfer.engine.engine import Engine
from roseinfer.engine.frames import LoadModel
from roseinfer.engine.loader import Wrap, build_engine, unwrapped
from roseinfer.engine.model_info import ModelInfo


def build_engine_of(
    load: LoadModel,
    checkpoint: Checkpoint,
    read_tokens: Callable[[], TokenTable],
    progress: Progress | None = None,
    progress_counter: UInt64Array | None = None,
    cache_fd: int | None = None,
    wrap: Wrap = unwrapped,
) -> tuple[Engine, ModelInfo]:
    """`read_tokens` is called with the first grammar. Raises as `build_engine` does."""
    return build_engine(
        checkpoint,
        device=load.device,
        dtype=load.dtype,
        weight_dtype=load.weight_dtype,
        kv_dtype=load.kv_dtype,
        num_threads=load.num_threads,
        isa=load.isa,
        max_model_len=load.max_model_len,
        max_batch_tokens=load.max_batch_tokens,
        max_running=load.max_running,
        kv_cache_memory=load.kv_cache_memory,
        prefix_cache=load.prefix_cache,
        fast=load.fast,
        grammars=GrammarCompiler(read_tokens, max_pending=load.max_pending_grammars, max_seconds=load.grammar_seconds),
        progress=progress,
        progress_counter=progress_counter,
        cache_fd=cache_fd,
        wrap=wrap,
        is_restart=load.is_restart,
    )
