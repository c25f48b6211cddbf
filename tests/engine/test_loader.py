"""From a checkpoint to an engine: what the settings bound, and what they cannot have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.errors import ConfigError, DeviceError
from roseinfer.engine import loader
from roseinfer.engine.device import check_device
from roseinfer.engine.engine import Engine
from roseinfer.engine.loader import BLOCK_SIZE, build_engine
from roseinfer.engine.model_info import ModelInfo
from tests.tiny_models import MAX_POSITIONS, TinyModel


@pytest.fixture
def build(tiny_model: Callable[[str], TinyModel]) -> Callable[..., tuple[Engine, ModelInfo]]:
    def build(**settings: Any) -> tuple[Engine, ModelInfo]:
        with open_checkpoint(tiny_model("torch-file").path) as checkpoint:
            return build_engine(checkpoint, num_threads=1, **settings)

    return build


Build = Callable[..., tuple[Engine, ModelInfo]]


def test_by_default_the_context_is_the_models(build: Build) -> None:
    engine, info = build()
    assert engine.max_model_len == info.max_model_len == MAX_POSITIONS
    assert (info.architecture, info.name) == ("gpt2", "model")
    assert set(info.memory) == {"weights", "kv_cache", "activations"}
    assert min(info.memory.values()) > 0
    assert info.num_parameters > info.vocab_size


def test_max_model_len_bounds_the_context(build: Build) -> None:
    assert build(max_model_len=20)[0].max_model_len == 20
    with pytest.raises(ConfigError, match=f"max_model_len {MAX_POSITIONS + 1} is above the model's {MAX_POSITIONS}"):
        build(max_model_len=MAX_POSITIONS + 1)


def test_kv_cache_memory_is_kept_and_cuts_the_context(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    _, whole = build(max_running=1)
    assert caplog.text == ""
    block_bytes = whole.memory["kv_cache"] * BLOCK_SIZE // max(512, MAX_POSITIONS)
    engine, info = build(kv_cache_memory=2 * block_bytes + 1)
    assert info.memory["kv_cache"] == 2 * block_bytes
    assert engine.stats().num_total_blocks == 2
    assert engine.max_model_len == info.max_model_len == 2 * BLOCK_SIZE
    assert f"holds {2 * BLOCK_SIZE} tokens, so the context is cut to that from {MAX_POSITIONS}" in caplog.text


def test_a_context_that_was_asked_for_is_not_cut(build: Build) -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory must be at least one block"):
        build(kv_cache_memory=1)
    with pytest.raises(ConfigError, match="needs a kv_cache_memory of at least") as caught:
        build(max_model_len=40, kv_cache_memory=30_000)
    needed = int(str(caught.value).split()[-2])
    assert build(max_model_len=40, kv_cache_memory=needed)[0].max_model_len == 40


def test_no_more_run_than_a_step_has_tokens_for(build: Build) -> None:
    engine, _ = build(max_running=64, max_batch_tokens=8)
    assert engine.max_running == 8


def test_devices() -> None:
    check_device("auto")
    check_device("cpu")
    with pytest.raises(DeviceError, match="--device cpu"):
        check_device("cuda")


def test_the_file_is_forgotten_while_it_is_loaded(
    tiny_model: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "MAX_KEPT_BYTES", 10_000)
    loaded: list[int] = []
    forgotten: list[int] = []
    with open_checkpoint(tiny_model("torch-file").path) as checkpoint:
        monkeypatch.setattr(type(checkpoint), "forget_pages", lambda _: forgotten.append(loaded[-1] if loaded else 0))
        build_engine(checkpoint, num_threads=1, progress=lambda done, total: loaded.append(done))
    assert len(forgotten) > 1
    sizes = [after - before for before, after in pairwise([0, *loaded])]
    assert max(after - before for before, after in pairwise([0, *forgotten])) < 10_000 + 2 * max(sizes)
