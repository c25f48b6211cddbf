"""Every linear kernel: format × instruction set × shape, from one row (decode) to many (prefill).

    python benchmarks/kernels.py [--isa avx512] [--threads 2] [--formats q4_1 q8_0]

One row is limited by reading the weights: GB/s of packed bytes. Many rows are limited by arithmetic: GOP/s, two
operations per weight and row. Each figure is the median of interleaved rounds; compare figures of one run only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from roseinfer.backends.native import _native
from roseinfer.core.machine import usable_cores
from roseinfer.quant import format_names, get_format

SHAPES = ((1536, 512), (4096, 2048))  # (rows, columns): one that stays in the cache, one that does not
ROW_COUNTS = (1, 16, 256)
FLOAT_FORMATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Case:
    isa: str
    format: str
    activation: str  # f32 | q8 | bf16
    shape: tuple[int, int]
    num_rows: int


def main() -> None:
    args = parse_arguments()
    pool = _native.ThreadPool(args.threads)
    weights = {(name, shape): make_weight(name, shape, pool) for name in args.formats for shape in SHAPES}
    cases = list(all_cases(args.isas, args.formats))
    samples: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            samples[case].append(seconds(case, weights[case.format, case.shape], pool))
    print(f"{args.threads} threads; median of {args.rounds} interleaved rounds")
    print(f"{'isa':<8}{'format':<7}{'act':<6}{'rows':>6}{'columns':>9}{'M':>5}{'GB/s':>8}{'GOP/s':>8}")
    for case in cases:
        print(format_row(case, weights[case.format, case.shape], statistics.median(samples[case])))


def all_cases(isas: list[str], formats: list[str]) -> Iterator[Case]:
    for isa in isas:
        for name in formats:
            for activation in activations(isa, name):
                for shape in SHAPES:
                    for num_rows in ROW_COUNTS:
                        yield Case(isa, name, activation, shape, num_rows)


def activations(isa: str, name: str) -> list[str]:
    """What serving uses for the format: int8 for quantised weights, bf16 where the CPU multiplies it."""
    if name == "bf16" and _native.has_bf16_dot(isa):
        return ["bf16"]
    return ["f32"] if name in FLOAT_FORMATS else ["q8"]


def make_weight(name: str, shape: tuple[int, int], pool: Any) -> Any:
    values = np.random.default_rng(0).normal(0, 0.05, shape[0] * shape[1]).astype(np.float32)
    return _native.pack(name, *shape, get_format(name).quantize(values), pool)


def seconds(case: Case, weight: Any, pool: Any) -> float:
    """Of one multiplication: the difference of many and few repetitions leaves the call's own cost out."""
    x = np.random.default_rng(1).normal(0, 1, (case.num_rows, case.shape[1])).astype(np.float32)
    repeat = max(
        2, int(4e9 / (2 * case.shape[0] * case.shape[1] * case.num_rows)) // (20 if case.isa == "scalar" else 1)
    )
    repeat = min(repeat, 500)
    few, many = (timed(case, weight, x, pool, n) for n in (1, 1 + repeat))
    return max(many - few, 1e-9) / repeat


def timed(case: Case, weight: Any, x: np.ndarray, pool: Any, repeat: int) -> float:
    start = time.perf_counter()
    _native.linear(case.isa, weight, x, case.activation, pool, repeat)
    return time.perf_counter() - start


def format_row(case: Case, weight: Any, time_taken: float) -> str:
    rows, columns = case.shape
    gigabytes = weight.nbytes / time_taken / 1e9
    gigaops = 2 * rows * columns * case.num_rows / time_taken / 1e9
    return (
        f"{case.isa:<8}{case.format:<7}{case.activation:<6}{rows:>6}{columns:>9}{case.num_rows:>5}"
        f"{gigabytes:>8.1f}{gigaops:>8.0f}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the linear kernels.")
    parser.add_argument("--isa", dest="isas", action="append", help="default: the best one here")
    parser.add_argument("--formats", nargs="+", default=list(format_names()))
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.isas = args.isas or [_native.isa("auto")]
    return args


if __name__ == "__main__":
    main()
