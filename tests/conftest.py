"""Fixtures that several folders share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from roseinfer.engine.device import has_driver

# Read when triton is first imported, which transformers may do too: without a GPU its kernels run on the CPU.
if not has_driver():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin while they wait, and the matrices are small

if TYPE_CHECKING:
    from tests.tiny_models import TinyModel


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run where `-m` names them."""
    if "slow" not in config.getoption("markexpr"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """`tiny_model(name)`: one of `tests.tiny_models.NAMES`, built once per session."""
    from tests.tiny_models import build  # transformers takes seconds to import

    root = tmp_path_factory.mktemp("tiny")
    built: dict[str, TinyModel] = {}

    def get(name: str) -> TinyModel:
        if name not in built:
            built[name] = build(name, root / name)
        return built[name]

    return get


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: Llama architecture, byte-level BPE."""
    return _real_model("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M: SentencePiece vocabulary of 262,144 tokens."""
    return _real_model("gemma3-270m")


def _real_model(name: str) -> Path:
    """From ROSEINFER_TEST_MODELS or the cache folder, else fetched into the cache; the test is skipped offline."""
    from roseinfer.catalog import CATALOG, cached_path, resolve_model
    from roseinfer.core.errors import ConfigError

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "roseinfer" / "models"
    folders = [Path(os.environ.get("ROSEINFER_TEST_MODELS") or cache), cache]
    for folder in folders:
        if (path := cached_path(CATALOG[name], folder)) is not None:
            return path
    try:
        return resolve_model(name, cache)
    except ConfigError as error:  # a download with the wrong content is a CheckpointError, and a failure
        pytest.skip(f"{name} is not here and cannot be fetched: {error}")
