"""The machine's limits, measured with all threads at once: what the kernels are compared with.

    python -m benchmarks.limits [--threads 2] [--rounds 5]

GB/s of reading from memory, from L3 and from L2, and GOP/s of float32, bf16 and int8 multiply-adds, for every
instruction set that runs here. An operation is a multiplication or an addition. `csrc/peaks.inl` has the loops.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from roseinfer.backends.native import _native
from roseinfer.core.machine import usable_cores

SECONDS = 0.03  # of one sample
MEMORY_BYTES = 512 << 20  # of a read from memory, or eight L3's if that is more
L3_BYTES = 16 << 20  # of a read from L3: far more than an L2, and less than the share of an L3 that a machine grants
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cache_bytes(level: int, default: int) -> int:
    """Size of a data cache as the operating system tells it; `default` where it does not."""
    for index in CACHES.glob("index*"):
        if (index / "level").read_text().strip() == str(level):
            size = (index / "size").read_text().strip()
            return int(size.removesuffix("K")) << 10
    return default


def l2_bytes() -> int:
    """Of one core."""
    return cache_bytes(2, 1 << 20)


def l3_bytes() -> int:
    """Of all cores together."""
    return cache_bytes(3, 32 << 20)


class Limits:
    """Samples of every limit, taken in rounds between what is compared with them."""

    def __init__(self, isas: Iterable[str], pool: _native.ThreadPool) -> None:
        self._pool = pool
        self.samples: dict[str, dict[str, list[float]]] = {isa: defaultdict(list) for isa in isas}

    def measure(self) -> None:
        """One more sample of each, about a third of a second per instruction set."""
        for isa, samples in self.samples.items():
            for kind, value in self._sample(isa):
                samples[kind].append(value)

    def _sample(self, isa: str) -> Iterator[tuple[str, float]]:
        for kind in _native.peak_kinds(isa):
            if kind != "read":
                yield kind, _native.measure_peak(kind, isa, self._pool, SECONDS)
        for place, size in self._places().items():
            yield place, _native.measure_peak("read", isa, self._pool, SECONDS, size)

    def _places(self) -> dict[str, int]:
        """Bytes to read, all threads together, so that they come from there."""
        memory = max(MEMORY_BYTES, 8 * l3_bytes())
        return {"memory": memory, "l3": L3_BYTES, "l2": self._pool.size() * l2_bytes() // 2}

    def has(self, isa: str, kind: str) -> bool:
        return kind in self.samples[isa]

    def median(self, isa: str, kind: str) -> float:
        """GB/s or GOP/s."""
        return statistics.median(self.samples[isa][kind])

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """isa → kind → median and best."""
        return {
            isa: {kind: {"median": statistics.median(x), "best": max(x)} for kind, x in samples.items()}
            for isa, samples in self.samples.items()
        }

    def table(self) -> Iterator[str]:
        yield f"{'limit, median (best)':<22}" + "".join(f"{isa:>16}" for isa in self.samples)
        summary = self.summary()
        for kind, unit in UNITS.items():
            cells = (_cell(by_kind.get(kind)) for by_kind in summary.values())
            yield f"{kind + ', ' + unit:<22}" + "".join(f"{cell:>16}" for cell in cells)


UNITS = {"memory": "GB/s", "l3": "GB/s", "l2": "GB/s", "f32": "GOP/s", "bf16": "GOP/s", "int8": "GOP/s"}


def _cell(figures: dict[str, float] | None) -> str:
    return f"{figures['median']:.0f} ({figures['best']:.0f})" if figures else "-"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures the machine's limits.")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    limits = Limits(_native.available_isas(), _native.ThreadPool(args.threads))
    for _ in range(args.rounds):
        limits.measure()
    print(f"{args.threads} threads, {args.rounds} rounds")
    print("\n".join(limits.table()))


if __name__ == "__main__":
    main()
