"""From a checkpoint to an engine: what the settings bound, and what they cannot have."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest

import roseinfer.backends.native._native as native
from roseinfer.backends import Program, ProgramOptions, backend_module
from roseinfer.checkpoints import open_checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import ConfigError, DeviceError
from roseinfer.core.messages import TokenOutput
from roseinfer.engine import loader
from roseinfer.engine.engine import Engine
from roseinfer.engine.loader import BLOCK_SIZE, build_engine
from roseinfer.engine.model_info import ModelInfo
from tests.fake_engine import make_request, run_to_end
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


def test_a_cpu_with_its_defaults(build: Build) -> None:
    engine, info = build(device="cpu")
    assert (info.device, info.weight_dtype, info.fast) == ("cpu", "auto", False)
    assert info.isa in native.available_isas()
    assert engine.max_running == 64
    assert loader.backend_module("native").DEFAULT_BATCH_TOKENS == 512


def test_the_cpu_has_no_fp8(build: Build) -> None:
    with pytest.raises(ConfigError, match="weight_dtype fp8 needs --device cuda"):
        build(weight_dtype="fp8")


def test_fast_changes_nothing_on_the_cpu(build: Build) -> None:
    (_, fast), (_, exact) = build(fast=True), build()
    assert fast == dataclasses.replace(exact, fast=True)


class GrowingProgram:
    """The model's program as if it were on a device that has memory for `limit` blocks."""

    device_name = "Device 7"

    def __init__(self, program: Program, limit: int) -> None:
        self._program = program
        self._limit = limit

    def reserve(self, num_blocks: int) -> int:
        return min(num_blocks, self._limit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


class OtherBackend:
    """The CPU's backend behind another's facts."""

    DEFAULT_BATCH_TOKENS = 24
    DEFAULT_REQUEST_TOKENS = 40

    def __init__(self, *, kv_memory: int = 1 << 30, num_backed: int = 4) -> None:
        self.backend = backend_module("native")
        self.most_kv_memory = kv_memory
        self.num_backed = num_backed
        self.weights: Mapping[str, Tensor] = {}
        self.fault: DeviceError | None = None
        self.options: ProgramOptions | None = None

    def compile(self, graph: Any, weights: Any, options: ProgramOptions, progress: Any = None) -> Any:
        assert options.kv_file is None
        self.options = options
        program = self.backend.compile(graph, weights, dataclasses.replace(options, weight_dtype="auto"), progress)
        return GrowingProgram(program, self.num_backed)

    def check_device(self) -> None:
        if self.fault is not None:
            raise self.fault

    def kv_block_bytes(self, specs: Any, kv_dtype: str) -> int:
        return self.backend.kv_block_bytes(specs, kv_dtype)

    def choose_kv_dtype(self, kv_dtype: str, dtype: str, isa: str, weights: Mapping[str, Tensor]) -> str:
        assert weights
        return "float32" if kv_dtype == "auto" else kv_dtype

    def kv_memory(self, weights: Mapping[str, Tensor], dtype: str, weight_dtype: str) -> int:
        self.weights = weights
        return self.most_kv_memory


@pytest.fixture
def put_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[OtherBackend], OtherBackend]:
    """What `cuda` is from now on."""

    def put(backend: OtherBackend) -> OtherBackend:
        monkeypatch.setattr(loader, "choose_backend", lambda device: device)
        monkeypatch.setattr(loader, "backend_module", lambda name: {"cuda": backend}[name])
        return backend

    return put


PutBackend = Callable[[OtherBackend], OtherBackend]


def test_another_backend_brings_its_own_defaults(
    build: Build, put_backend: PutBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend = put_backend(OtherBackend())
    engine, info = build(device="cuda", weight_dtype="fp8", fast=True, cache_fd=-1)
    assert backend.options is not None
    assert (backend.options.max_batch_tokens, backend.options.kv_dtype) == (24, "float32")
    assert (backend.options.weight_dtype, backend.options.fast) == ("fp8", True)
    assert (info.device, info.weight_dtype, info.kv_dtype, info.fast) == ("Device 7", "fp8", "float32", True)
    assert engine.max_running == 24
    assert caplog.text == ""  # a file for kept blocks, which there is not, is not looked at
    assert sum(tensor.data.nbytes for tensor in backend.weights.values()) == sum(n for _, n in info.formats.values())
    assert build(device="cuda", max_batch_tokens=9)[0].max_running == 9


def test_the_automatic_cache_takes_no_more_than_the_backend_allows(build: Build, put_backend: PutBackend) -> None:
    block_bytes = build(kv_dtype="float32", max_running=1)[1].memory["kv_cache"] * BLOCK_SIZE // 512
    put_backend(OtherBackend(kv_memory=3 * block_bytes + 1))
    engine, info = build(device="cuda")
    assert engine.stats().num_total_blocks == 3
    assert info.memory["kv_cache"] == 3 * block_bytes
    put_backend(OtherBackend(kv_memory=block_bytes - 1))
    with pytest.raises(ConfigError, match="there is no memory left for a KV cache"):
        build(device="cuda")


def test_auto_goes_on_with_the_cpu_where_the_gpu_cannot_be_used(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = OtherBackend()
    other.fault = DeviceError("too old")
    monkeypatch.setattr(loader, "choose_backend", lambda device: "cuda")
    monkeypatch.setattr(loader, "backend_module", lambda name: other if name == "cuda" else backend_module(name))
    assert build(device="auto")[1].device == "cpu"
    assert "too old; going on with the CPU" in caplog.text
    with pytest.raises(DeviceError, match="too old"):
        build(device="cuda")


def test_after_a_restart_memory_that_is_gone_is_no_error(build: Build, put_backend: PutBackend) -> None:
    backend = put_backend(OtherBackend(kv_memory=0))
    with pytest.raises(ConfigError, match="no memory left"):
        build(device="cuda")
    engine, _ = build(device="cuda", is_restart=True)
    assert engine.stats().num_total_blocks == 1
    assert backend.options is not None
    assert backend.options.is_restart


def end_of(engine: Engine, num_tokens: int) -> TokenOutput:
    """The last output of a request that is `num_tokens` long in the end."""
    engine.add(make_request("r", [1] * 8, max_tokens=num_tokens - 8))
    return run_to_end(engine).ends["r"]


def test_the_pool_grows_with_the_program(build: Build, put_backend: PutBackend) -> None:
    put_backend(OtherBackend(num_backed=2))
    engine, _ = build(device="cuda", prefix_cache=False)
    planned = engine.stats().num_total_blocks
    assert end_of(engine, 2 * BLOCK_SIZE).finish_reason == "length"
    assert engine.stats().num_total_blocks == planned > 2


def test_a_request_that_memory_ran_out_for_ends_alone(build: Build, put_backend: PutBackend) -> None:
    put_backend(OtherBackend(num_backed=2))
    engine, _ = build(device="cuda")
    end = end_of(engine, 2 * BLOCK_SIZE + 2)
    assert (end.finish_reason, end.error) == (
        "error",
        "the request failed in the engine: it needs 3 KV blocks, 2 of 2 are available, and nothing else runs",
    )
    assert engine.stats().num_total_blocks == 2
    assert end_of(engine, 2 * BLOCK_SIZE).finish_reason == "length"


def test_a_device_without_memory_for_one_block(build: Build, put_backend: PutBackend) -> None:
    put_backend(OtherBackend(num_backed=0))
    with pytest.raises(ConfigError, match="the device has no memory left for a KV cache"):
        build(device="cuda")


def test_a_backend_that_cannot_be_imported_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(DeviceError, match=r"the cuda backend cannot be loaded: .*libcudart.*--device chooses another"):
        backend_module("cuda")


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
