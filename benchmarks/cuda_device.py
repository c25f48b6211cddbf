"""The GPU that is measured: what it is, its clock, and how fast it reads, copies and multiplies."""

from __future__ import annotations

import gc
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton

from roseinfer.backends.cuda.device import device_name

QUERY = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit")


# -- what it is -----------------------------------------------------------------------------------------------


def describe(device: torch.device) -> dict[str, str]:
    """The card and the software, for the head of the report."""
    facts = {"device": device_name(device), "torch": torch.__version__, "triton": triton.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "driver": ", ".join(_ask_driver(device, "driver_version")) or "unknown",
            "cuda": str(torch.version.cuda),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / (1 << 30):.1f} GiB",
        }
    return facts | {"python": platform.python_version(), "clocks": clocks(device)}


def clocks(device: torch.device) -> str:
    """At this moment, as the driver says; empty where it cannot be asked."""
    values = _ask_driver(device, ",".join(QUERY))
    return ", ".join(f"{name} {value}" for name, value in zip(QUERY, values, strict=False))


def _ask_driver(device: torch.device, query: str) -> list[str]:
    command = shutil.which("nvidia-smi")
    if device.type != "cuda" or command is None:
        return []
    words = [command, f"--query-gpu={query}", "--format=csv,noheader"]
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    for which in ([f"--id=GPU-{uuid}"] if uuid else [], []):
        answer = subprocess.run([*words, *which], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return [part.strip() for part in answer.stdout.splitlines()[0].split(",")]
    return []


def release() -> None:
    """Gives back the memory of what is no longer there: programs look at how much is free."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# -- its clock ------------------------------------------------------------------------------------------------


class Mark:
    """A moment between two pieces of work on the current stream; on the CPU, the moment when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    @property
    def is_passed(self) -> bool:
        """Whether the device has done everything before it."""
        return self._event is None or self._event.query()

    def seconds_until(self, later: Mark) -> float:
        """Waits until the later one is passed."""
        if self._event is None or later._event is None:
            return later._time - self._time
        later._event.synchronize()
        return self._event.elapsed_time(later._event) / 1e3


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Of one of `repeats` runs, one behind the other, on the device's own clock."""
    start = Mark(device)
    for _ in range(repeats):
        run()
    return start.seconds_until(Mark(device)) / repeats


# -- its limits -----------------------------------------------------------------------------------------------


class Memory:
    """Two pieces of device memory, much larger than the caches."""

    def __init__(self, device: torch.device, num_bytes: int, repeats: int) -> None:
        self._device = device
        self._repeats = repeats
        self._source = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
        self._target = torch.zeros_like(self._source)

    def copy_rate(self) -> float:
        """Bytes per second, those read and those written."""
        return 2 * self._source.nbytes / seconds(self._copy, self._repeats, self._device)

    def read_rate(self) -> float:
        return self._source.nbytes / seconds(self._source.sum, self._repeats, self._device)

    def _copy(self) -> None:
        self._target.copy_(self._source)


@dataclass(frozen=True)
class Product:
    """x [tokens, columns] · w [rows, columns]ᵀ"""

    name: str
    tokens: int
    rows: int
    columns: int

    @property
    def operations(self) -> int:
        return 2 * self.tokens * self.rows * self.columns


class Multiplier:
    """One product by the vendor's library, bfloat16 with float32 sums. Of random numbers: zeros draw less power."""

    def __init__(self, device: torch.device, product: Product, repeats: int) -> None:
        self.product = product
        self._device = device
        self._repeats = repeats
        self._x = torch.randn(product.tokens, product.columns, device=device).bfloat16()
        self._w = torch.randn(product.rows, product.columns, device=device).bfloat16()
        self._multiply()  # the library chooses its kernel in the first call

    def seconds(self) -> float:
        return seconds(self._multiply, self._repeats, self._device)

    def rate(self) -> float:
        """Operations per second."""
        return self.product.operations / self.seconds()

    def _multiply(self) -> torch.Tensor:
        return F.linear(self._x, self._w)
