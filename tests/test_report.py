"""What `roseinfer doctor` reads of the system, on machines that this one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from roseinfer import report
from roseinfer.core.config import load_config
from roseinfer.engine import device

VERSION = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build  (buildd@x)
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
INFORMATION = "Model: \t\t NVIDIA {}\nIRQ:   \t\t 16\nGPU UUID: \t GPU-1\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a driver shows itself in; empty."""
    monkeypatch.setattr(report, "NVIDIA", tmp_path)
    monkeypatch.setattr(device, "DRIVER_FILES", (tmp_path / "version",))
    return tmp_path


def facts() -> dict[str, str]:
    lines = report.machine_report(load_config(environ={})).splitlines()
    width = lines[0].index(report.roseinfer.__version__)
    return {line[:width].strip(): line[width:] for line in lines}


def test_no_gpu(driver: Path) -> None:
    said = facts()
    assert (said["gpu"], said["gpu driver"], said["device"]) == ("none that the system shows", "none", "cpu (auto)")


def test_two_gpus(driver: Path) -> None:
    (driver / "version").write_text(VERSION)
    for address, model in (("0000:01:00.0", "H200"), ("0000:02:00.0", "L4")):
        (driver / "gpus" / address).mkdir(parents=True)
        (driver / "gpus" / address / "information").write_text(INFORMATION.format(model))
    said = facts()
    assert (said["gpu"], said["gpu driver"]) == ("NVIDIA H200, NVIDIA L4", "NVIDIA 595.71.05")


def test_a_driver_that_says_no_version(driver: Path) -> None:
    (driver / "version").write_text("")
    assert facts()["gpu driver"] == "NVIDIA"


def test_memory_that_grows_is_a_bound() -> None:
    assert report.format_memory({"weights": 5, "kv_cache": 1 << 20}) == "weights 5 B, KV cache up to 1.0 MiB"
