"""What a quick start leaves out, and that nothing is missing afterwards."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roseinfer.server import startup

ROOT = Path(__file__).parents[2]
SERVED_SCHEMA = """
import json, sys
from types import SimpleNamespace
from roseinfer.server import startup
startup.import_fastapi()
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel
from roseinfer.server.app import create_app
is_built = OpenAPI.__pydantic_complete__
info = SimpleNamespace(name="fake", max_model_len=8, memory={})
engine = SimpleNamespace(client=SimpleNamespace(max_model_len=8), info=info, name="fake")
schema = create_app(engine).openapi()
print(json.dumps([is_built, schema, "pydantic.v1.main" in sys.modules, BaseModel.model_config]))
"""


def test_nothing_is_collected_until_the_end() -> None:
    with startup.quick_start():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(RuntimeError), startup.quick_start():
        raise RuntimeError
    assert gc.isenabled()


def test_variables_that_are_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    monkeypatch.delenv("PYDANTIC_DISABLE_PLUGINS", raising=False)
    startup.limit_libraries()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
    assert os.environ["PYDANTIC_DISABLE_PLUGINS"] == "1"


def test_the_schema_is_there_when_asked_for() -> None:
    """In a process of its own, where FastAPI has not been imported yet."""
    command = [sys.executable, "-W", "error", "-c", SERVED_SCHEMA]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    is_built, schema, has_old_pydantic, config_of_all_models = json.loads(done.stdout)
    assert not is_built
    assert "/generate" in schema["paths"]
    assert not has_old_pydantic
    assert config_of_all_models == {}
