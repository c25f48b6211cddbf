"""What the process may use: the smaller of what the machine has and what its container is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roseinfer.core import machine


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup without limits, on a machine of eight cores."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "num_cores"),
    [(None, 8), ("max 100000\n", 8), ("400000 100000\n", 4), ("250000 100000", 2), ("50000 100000", 1), ("99 1", 8)],
)
def test_cores(container: Path, limit: str | None, num_cores: int) -> None:
    if limit is not None:
        (container / "cpu.max").write_text(limit)
    assert machine.usable_cores() == num_cores


def test_memory(container: Path) -> None:
    total = machine.usable_memory()
    assert total > 0
    for limit, usable in [("max\n", total), ("4096\n", 4096), (str(total + 1), total)]:
        (container / "memory.max").write_text(limit)
        assert machine.usable_memory() == usable
