"""From settings to what `InferenceEngine` is made of: a client of a running engine, a tokenizer, the model's facts."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from roseinfer.core.config import Config

if TYPE_CHECKING:
    from roseinfer.checkpoints import Checkpoint
    from roseinfer.constraints import TokenTable
    from roseinfer.engine.client import EngineClient
    from roseinfer.engine.frames import LoadModel, Vocabulary
    from roseinfer.engine.model_info import ModelInfo
    from roseinfer.text import Tokenizer

Say = Callable[[str], None]
Parts = tuple["EngineClient", "Tokenizer", "ModelInfo"]

logger = logging.getLogger(__name__)


def load_here(config: Config, say: Say | None = None, num_tenants: int = 0) -> Parts:
    """The engine runs on a thread of this process. `num_tenants`: callers with keys of their own."""
    # Imported here, because who only puts an app around a given engine needs none of them.
    from roseinfer.checkpoints import open_checkpoint
    from roseinfer.engine.client import EngineClient
    from roseinfer.engine.loading import build_engine_of
    from roseinfer.loading_bar import LoadingBar

    path = _find_model(config, say)
    with open_checkpoint(path) as checkpoint:
        tokenizer = _load_tokenizer(config, checkpoint, say)
        load = _load_command(config, path)
        info: ModelInfo  # there before the first grammar is
        with LoadingBar() if say else contextlib.nullcontext() as progress:
            engine, info = build_engine_of(load, checkpoint, lambda: _token_table(tokenizer, info), progress)
    client = EngineClient(engine, _eos_ids(tokenizer, info), max_queue=config.max_queue, num_tenants=num_tenants)
    return _started(client, tokenizer, info)


def load_in_process(
    config: Config, say: Say | None = None, num_tenants: int = 0, meanwhile: Callable[[], object] = lambda: None
) -> Parts:
    """The engine runs in a process of its own, and loads while this one reads the tokenizer and does `meanwhile`."""
    from roseinfer.checkpoints import open_checkpoint
    from roseinfer.engine.client import EngineClient
    from roseinfer.engine.process import EngineProcess
    from roseinfer.loading_bar import LoadingBar

    path = _find_model(config, say)
    host: EngineProcess
    tokenizer: Tokenizer

    def read_vocabulary() -> Vocabulary:
        return _vocabulary(tokenizer, host.wait_until_loaded())

    with LoadingBar() if say else contextlib.nullcontext() as progress, contextlib.ExitStack() as stack:
        host = EngineProcess(_load_command(config, path), read_vocabulary, progress)
        stack.callback(host.close)
        with open_checkpoint(path) as checkpoint:
            tokenizer = _load_tokenizer(config, checkpoint, say)
        meanwhile()
        info = host.wait_until_loaded()
        stack.pop_all()
    client = EngineClient(host, _eos_ids(tokenizer, info), max_queue=config.max_queue, num_tenants=num_tenants)
    return _started(client, tokenizer, info)


def _find_model(config: Config, say: Say | None) -> Path:
    from roseinfer.catalog import resolve_model
    from roseinfer.engine.device import choose_backend

    choose_backend(config.device)  # what cannot be served from is told before a download
    return resolve_model(config.model, config.models_dir, say)


def _load_tokenizer(config: Config, checkpoint: Checkpoint, say: Say | None) -> Tokenizer:
    from roseinfer.catalog import resolve_tokenizer
    from roseinfer.text import load_tokenizer

    named = config.tokenizer
    return load_tokenizer(resolve_tokenizer(named, config.models_dir, say) if named else checkpoint)


def _load_command(config: Config, path: Path) -> LoadModel:
    from roseinfer.engine.frames import LoadModel

    return LoadModel(
        path=os.fsencode(path.absolute()),
        device=config.device,
        dtype=config.dtype,
        weight_dtype=config.weight_dtype,
        kv_dtype=config.kv_dtype,
        num_threads=config.threads,
        isa=config.isa,
        max_model_len=config.max_model_len,
        max_batch_tokens=config.max_batch_tokens,
        max_running=config.max_running,
        kv_cache_memory=config.kv_cache_memory,
        prefix_cache=config.prefix_cache,
        fast=config.fast,
        max_pending_grammars=config.max_running + config.max_queue,  # a full queue of requests can have one each
        grammar_seconds=config.grammar_timeout,
        log_level=logging.getLogger("roseinfer").getEffectiveLevel(),
    )


def _started(client: EngineClient, tokenizer: Tokenizer, info: ModelInfo) -> Parts:
    if tokenizer.vocab_size > info.vocab_size:
        logger.warning(
            "the tokenizer has %d tokens, the model only %d; is it the model's own?",
            tokenizer.vocab_size,
            info.vocab_size,
        )
    client.start()
    return client, tokenizer, info


def _eos_ids(tokenizer: Tokenizer, info: ModelInfo) -> list[int]:
    return sorted({i for i in (*info.eos_ids, *tokenizer.eos_ids) if i < info.vocab_size})


def _known_ids(tokenizer: Tokenizer, info: ModelInfo) -> Iterable[int]:
    return range(min(tokenizer.vocab_size, info.vocab_size))


def _token_table(tokenizer: Tokenizer, info: ModelInfo) -> TokenTable:
    from roseinfer.constraints import TokenTable

    ids = _known_ids(tokenizer, info)
    return TokenTable(
        tokens=[tokenizer.token_bytes(token_id) for token_id in ids],
        special_ids=frozenset(filter(tokenizer.is_special, ids)),
        eos_ids=tuple(_eos_ids(tokenizer, info)),
        vocab_size=info.vocab_size,
    )


def _vocabulary(tokenizer: Tokenizer, info: ModelInfo) -> Vocabulary:
    """The same as a message."""
    from roseinfer.engine.frames import Vocabulary

    table = _token_table(tokenizer, info)
    return Vocabulary(list(table.tokens), sorted(table.special_ids), list(table.eos_ids), table.vocab_size)
