"""What `roseinfer inspect`, `list` and `doctor` print."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import roseinfer
from roseinfer.catalog import ENTRIES, cached_path
from roseinfer.core.config import Config
from roseinfer.core.errors import DeviceError
from roseinfer.core.machine import usable_cores, usable_memory

LIBRARIES = ("numpy", "tokenizers", "fastapi", "uvicorn", "pydantic", "msgspec", "huggingface-hub", "torch", "triton")
NVIDIA = Path("/proc/driver/nvidia")  # what the kernel's module says of itself and of the GPUs


def format_size(num_bytes: float) -> str:
    """`98362432` → `93.8 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def format_memory(memory: Mapping[str, int]) -> str:
    """`{"kv_cache": 1048576}` → `KV cache up to 1.0 MiB`: it takes what is used."""
    names = {"kv_cache": "KV cache up to"}
    return ", ".join(f"{names.get(use, use)} {format_size(size)}" for use, size in memory.items())


def model_report(config: Config, say: Callable[[str], None] | None = None) -> str:
    """Loads the model with these settings: the memory shown is what it takes, not an estimate."""
    from roseinfer.inference_engine import InferenceEngine

    with InferenceEngine.from_config(config, say) as engine:
        info = engine.info
        facts = [
            ("model", info.file),
            ("container", info.container),
            ("architecture", info.architecture),
            *_formats(info.formats),
            ("parameters", f"{info.num_parameters / 1e6:,.1f} M"),
            ("vocabulary", f"{info.vocab_size:,} tokens"),
            ("context", f"{info.max_model_len:,} tokens"),
            ("device", info.device),
            *([("kernels", info.isa)] if info.isa else []),
            ("memory", format_memory(info.memory)),
        ]
    return _two_columns(facts)


def catalog_report(models_dir: Path) -> str:
    """The catalogue as a table no wider than 80 columns."""
    rows = [("NAME", "SIZE", "LICENCE", "HERE", "WHAT")]
    for entry in ENTRIES:
        here = "yes" if cached_path(entry, models_dir) else "no"
        rows.append((entry.name, f"{entry.num_bytes / 1e6:.0f} MB", entry.licence, here, entry.summary))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def machine_report(config: Config) -> str:
    facts = [
        ("roseinfer", roseinfer.__version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("cpu", _cpu_name()),
        *_kernels(config.isa),
        ("gpu", _gpus()),
        ("gpu driver", _driver()),
        ("device", _device(config.device)),
        ("threads", f"{config.threads or usable_cores()} of {usable_cores()} cores"),
        ("memory", format_size(usable_memory())),
        ("cache", str(config.models_dir)),
        *((name, _version(name)) for name in LIBRARIES),
    ]
    return _two_columns(facts)


def _formats(formats: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
    lines = [f"{name}: {count} tensors, {format_size(num_bytes)}" for name, (count, num_bytes) in formats.items()]
    return [("" if i else "formats", line) for i, line in enumerate(lines)]


def _kernels(isa: str) -> list[tuple[str, str]]:
    """What the compiled kernels say of themselves; they may be missing in a source tree that was never built."""
    try:
        native: Any = importlib.import_module("roseinfer.backends.native._native")
    except ImportError as error:
        return [("kernels", f"not built ({error})")]
    available = native.available_isas()
    chosen = native.isa(isa) if isa in ("auto", *available) else f"{isa} does not run here"
    features = [name for name, is_there in native.cpu_features().items() if is_there]
    return [
        ("cpu features", ", ".join(features) or "none that we use"),
        ("kernels", f"{chosen} (here: {', '.join(available)})"),
    ]


def _gpus() -> str:
    """Names as the driver has them, which does not tell in a virtual machine of Windows."""
    try:
        facts = [file.read_text("utf-8", errors="replace") for file in sorted(NVIDIA.glob("gpus/*/information"))]
    except OSError as error:
        return f"cannot be read: {error}"
    lines = [line.partition(":") for text in facts for line in text.splitlines()]
    return ", ".join(value.strip() for name, _, value in lines if name == "Model") or "none that the system shows"


def _driver() -> str:
    from roseinfer.engine.device import has_driver

    try:
        version = (NVIDIA / "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "NVIDIA" if has_driver() else "none"
    number = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", version)
    return f"NVIDIA {number[0]}" if number else "NVIDIA"


def _device(device: str) -> str:
    """Where a model would run with these settings."""
    from roseinfer.engine.device import choose_backend

    try:
        chosen = {"native": "cpu"}.get(backend := choose_backend(device), backend)
    except DeviceError as error:
        return str(error)
    return f"{chosen} (auto)" if device == "auto" else chosen


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _two_columns(facts: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
