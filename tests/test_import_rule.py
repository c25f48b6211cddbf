"""The floors hold: nothing imports upwards or across, and serving pulls in neither torch nor transformers."""

from __future__ import annotations

import graphlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_rule import MAY_IMPORT, imported_names, package_violations, violations

ROOT = Path(__file__).parent.parent
LOADED = "import {module}, json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


def test_the_package_keeps_the_rule() -> None:
    assert package_violations(ROOT / "roseinfer") == []


def test_the_parts_form_no_cycle() -> None:
    order = list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())
    assert set(order) == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("roseinfer.core.request", "from roseinfer.scheduler import Scheduler"),
        ("roseinfer.core.request", "import roseinfer.engine.client"),
        ("roseinfer.quant.q4_0", "from roseinfer.checkpoints.tensor import Tensor"),
        ("roseinfer.graph.graph", "from roseinfer.models import load_model"),
        ("roseinfer.models.llama", "from roseinfer.backends import compile_program"),
        ("roseinfer.scheduler.scheduler", "from roseinfer.backends import Program"),
        ("roseinfer.cache.block_pool", "from roseinfer.scheduler import Scheduler"),
        ("roseinfer.text.tokenizer", "from roseinfer.models import load_model"),
        ("roseinfer.backends.native", "from roseinfer.backends.torch import ops"),
        ("roseinfer.backends.native", "from roseinfer.backends import torch"),
        ("roseinfer.backends.sampling", "from roseinfer.core.request import Request\nimport roseinfer.scheduler"),
        ("roseinfer.engine.client", "from roseinfer.inference_engine import InferenceEngine"),
        ("roseinfer.engine.client", "from roseinfer import inference_engine"),
        ("roseinfer.inference_engine", "from roseinfer.server import create_app"),
        ("roseinfer.server.app", "from roseinfer import cli"),
        ("roseinfer.models.gpt2", "import torch"),
        ("roseinfer.backends.native", "import torch.nn.functional as F"),
        ("roseinfer.inference_engine", "from fastapi import FastAPI"),
        ("roseinfer.cli", "import uvicorn"),
        ("roseinfer.engine.process", "from starlette.types import Scope"),
        ("roseinfer.backends.torch.program", "from transformers import AutoModel"),
        ("roseinfer.server.app", "import transformers"),
        ("roseinfer.checkpoints.gguf", "import gguf"),
        ("roseinfer.inference_engine", "import prometheus_client"),
        ("roseinfer.server.app", "from roseinfer.chat import run_chat"),
    ],
)
def test_an_offence_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def late():\n    import torch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "class Holder:\n    def method(self):\n        if self:\n            from torch import nn",
        "import importlib\nimportlib.import_module('torch')",
        "from importlib import import_module\nimport_module('torch.nn')",
        "__import__('torch')",
        "import os, torch",
        "from roseinfer.server import app",
        "from .server import app",
        "from . import server",
        "import importlib\nname = 'x'\nimportlib.import_module(f'roseinfer.server.{name}')",
    ],
)
def test_an_import_counts_wherever_it_stands(source: str) -> None:
    assert len(violations(source, "roseinfer.catalog")) == 1


@pytest.mark.parametrize(
    ("module", "is_package", "source", "name"),
    [
        ("roseinfer.cache.block_pool", False, "from . import prefix_cache", "roseinfer.cache.prefix_cache"),
        ("roseinfer.cache", True, "from .block_pool import BlockPool", "roseinfer.cache.block_pool.BlockPool"),
        ("roseinfer.cache.block_pool", False, "from ..core.errors import E", "roseinfer.core.errors.E"),
        ("roseinfer.cache", True, "from .. import engine", "roseinfer.engine"),
    ],
)
def test_relative_imports_become_absolute(module: str, is_package: bool, source: str, name: str) -> None:
    assert list(imported_names(source, module, is_package=is_package)) == [(1, name)]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("roseinfer.core.request", "import numpy as np\nfrom roseinfer.core.errors import RoseinferError"),
        ("roseinfer.core.request", "import roseinfer\nfrom roseinfer import __version__"),
        (
            "roseinfer.models.llama",
            "from roseinfer.graph import Graph\nfrom roseinfer.checkpoints.tensor import Tensor",
        ),
        ("roseinfer.scheduler.scheduler", "from roseinfer.cache import BlockPool"),
        ("roseinfer.text.loading", "from roseinfer.checkpoints import open_checkpoint"),
        ("roseinfer.backends.torch.program", "import torch\nfrom roseinfer.backends.sampling import sample"),
        ("roseinfer.engine", "import importlib\nimportlib.import_module('roseinfer.inference_engine')"),
        ("roseinfer.server.routes.generate", "from fastapi import APIRouter\nfrom roseinfer.server import schemas"),
    ],
)
def test_what_the_floors_allow_is_no_offence(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_the_engines_lazy_door_is_open_to_no_other_module() -> None:
    source = "import importlib\nimportlib.import_module('roseinfer.inference_engine')"
    assert len(violations(source, "roseinfer.engine.loader")) == 1


def test_a_part_without_a_floor_is_an_offence() -> None:
    assert "no floor" in violations("", "roseinfer.novelty")[0]
    assert "may not import novelty" in violations("import roseinfer.novelty", "roseinfer.server.app")[0]


def test_the_files_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "cache" / "__init__.py").write_text("from .block_pool import x\nfrom ..engine import y\n")
    (tmp_path / "cache" / "block_pool.py").write_text("\nimport torch\n")
    assert [line.partition(" ")[0] for line in package_violations(tmp_path)] == [
        "roseinfer.cache:2:",
        "roseinfer.cache.block_pool:2:",
    ]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("roseinfer.server.app", {"torch", "transformers", "prometheus_client"}),
        ("roseinfer.cli", {"torch", "transformers", "fastapi", "uvicorn"}),
        ("roseinfer.backends.native", {"torch", "transformers", "fastapi"}),
        ("roseinfer.inference_engine", {"torch", "transformers", "fastapi", "starlette", "uvicorn"}),
        ("roseinfer.engine.client", {"torch", "fastapi", "starlette", "uvicorn", "typer"}),
        ("roseinfer.scheduler", {"torch", "fastapi", "tokenizers"}),
    ],
)
def test_what_an_import_does_not_pull_in(module: str, absent: set[str]) -> None:
    assert not loaded_by(module) & absent


def test_the_torch_backend_does_pull_it_in() -> None:
    """Otherwise the test above would look for the wrong thing."""
    assert "torch" in loaded_by("roseinfer.backends.torch")


def test_the_door_is_found_in_the_engine_package() -> None:
    engine = importlib.import_module("roseinfer.engine")
    assert engine.InferenceEngine is importlib.import_module("roseinfer.inference_engine").InferenceEngine
    with pytest.raises(AttributeError):
        _ = engine.Inference


def loaded_by(module: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `import module`."""
    command = [sys.executable, "-W", "error", "-c", LOADED.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))
