"""Runs the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing of the caller's settings, and a cache folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROSEINFER_", "XDG_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "80"}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """`run("list")` is `roseinfer list`; `model="fake"` puts the model of bytes behind it."""

    def run(
        *arguments: str, model: str = "real", stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        module = "roseinfer" if model == "real" else "tests.cli.fake_main"
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**environment, **variables},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
        )

    return run
