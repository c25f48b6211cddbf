"""Every kernel against the machine's limits: instruction set × weight format × shape × tokens, and attention.

    python -m benchmarks.kernels [--quick] [--isas avx512] [--formats q4_1 q8_0] [--rounds 3] [--json kernels.json]

The floor of a case is the larger of

    bytes of the packed weight, or of the keys and values ÷ read bandwidth of the place they come from
    2 × weights × tokens ÷ peak of the arithmetic

with the limits of `benchmarks/limits.py`, measured between the cases of the same run. The fraction is floor ÷ time:
1.00 is a kernel at the limit of the machine. Decode has few tokens and is bounded by its bytes, so up to 16 tokens are
timed twice, with everything from memory and from the caches (`benchmarks/cases.py`). Medians of rounds in which the
cases take turns; compare figures of one run only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import AttentionCase, Case, DType, LinearCase, Source
from benchmarks.limits import Limits
from roseinfer.backends.native import _native
from roseinfer.core.machine import usable_cores
from roseinfer.quant import format_names

SHAPES = (  # (rows, columns): SmolLM2-135M's qkv, attention output, gate or up, down and head
    (960, 576),
    (576, 576),
    (1536, 576),
    (576, 1536),
    (49152, 576),
    (2048, 2048),  # a model of 1B
    (8192, 2048),
    (2048, 8192),
    (4096, 2048),
    (41, 512),  # what the tests compute: not a multiple of anything
)
NUM_TOKENS = (1, 4, 16, 64, 512)
HEAD_ROWS = 32768  # at least: a vocabulary
MAX_HEAD_TOKENS = 64  # logits are computed for a token per request, not for a prompt
QUICK_FORMATS = ("q4_0", "q4_1", "q4_k", "q5_0", "q6_k", "q8_0", "bf16", "f16", "f32")
QUICK_SHAPES = ((1536, 576), (576, 1536), (2048, 8192))
MAX_OPERATIONS = {"scalar": 1e9}  # of one pass; what takes longer is left out
LIMITS_EVERY = 2.0  # seconds; neighbours come and go
SOURCES: tuple[Source, ...] = ("memory", "cache")

KV_DTYPES = ("float16", "bfloat16", "q8")
HEADS = ((9, 3, 64), (32, 8, 64), (4, 1, 256))  # SmolLM2-135M, a model of 1B, Gemma3-270M
ATTENTION_SIZES: tuple[tuple[int, int, int, Source], ...] = (  # context, requests, new tokens of each, source
    (256, 1, 1, "memory"),
    (1024, 1, 1, "memory"),
    (4096, 1, 1, "memory"),
    (1024, 16, 1, "memory"),
    (512, 1, 512, "cache"),
    (4096, 1, 512, "cache"),
)


@dataclass(frozen=True)
class Result:
    """Seconds of one layer in each round, and what the limit would leave of them."""

    case: Case
    samples: Sequence[float]
    place: str  # where the bytes come from: memory, l3 or l2
    limit: str  # the place or the arithmetic, whichever takes longer
    floor: float

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples)

    def figures(self) -> dict[str, object]:
        case = self.case
        return {
            "isa": case.isa,
            "kernel": case.name,
            "family": case.family,
            "arithmetic": case.arithmetic,
            "num_tokens": case.num_tokens,
            "place": self.place,
            "bytes": case.nbytes,
            "operations": case.operations,
            "seconds": self.seconds,
            "samples": self.samples,
            "limit": self.limit,
            "fraction": self.floor / self.seconds,
        }

    def row(self) -> str:
        case = self.case
        spread = (max(self.samples) - min(self.samples)) / self.seconds
        return (
            f"{case.isa:<13}{case.name:<37}{case.arithmetic:<6}{case.num_tokens:>5}  {self.place:<8}"
            f"{case.nbytes / self.seconds / 1e9:>8.1f}{case.operations / self.seconds / 1e9:>8.0f}"
            f"{spread:>8.0%}  {self.limit:<7}{self.floor / self.seconds:>8.2f}"
        )


HEADER = (
    f"{'isa':<13}{'kernel':<37}{'in':<6}{'M':>5}  {'from':<8}{'GB/s':>8}{'GOP/s':>8}{'spread':>8}  "
    f"{'limit':<7}{'fraction':>8}"
)


def make_result(case: Case, samples: Sequence[float], limits: Limits, num_threads: int) -> Result:
    """An instruction set without int8 arithmetic is held to its float32."""
    place = case.place(num_threads)
    arithmetic = case.arithmetic if limits.has(case.isa, case.arithmetic) else "f32"
    floors = {
        place: case.nbytes / limits.median(case.isa, place) / 1e9,
        arithmetic: case.operations / limits.median(case.isa, arithmetic) / 1e9,
    }
    limit = max(floors, key=lambda kind: floors[kind])
    return Result(case, samples, place, limit, floors[limit])


def measure(cases: Sequence[Case], limits: Limits, num_threads: int, num_rounds: int) -> list[Result]:
    samples: dict[Case, list[float]] = {case: [] for case in cases}
    measured = -math.inf
    for case in [*cases] * num_rounds:
        if time.perf_counter() - measured > LIMITS_EVERY:
            limits.measure()
            measured = time.perf_counter()
        samples[case].append(case.seconds(num_threads))
    return [make_result(case, samples[case], limits, num_threads) for case in cases]


def linear_cases(args: argparse.Namespace) -> Iterator[LinearCase]:
    dtype: DType = "float32" if args.float32 else "auto"
    for isa, (rows, columns), name in itertools.product(args.isas, args.shapes, args.formats):
        for source, num_tokens in itertools.product(SOURCES, args.num_tokens):
            case = LinearCase(isa, name, dtype, rows, columns, num_tokens, source)
            if case.is_possible() and case.is_realistic() and is_worthwhile(case):
                yield case


def is_worthwhile(case: LinearCase) -> bool:
    if case.rows >= HEAD_ROWS and case.num_tokens > MAX_HEAD_TOKENS:
        return False
    return case.operations * case.num_layers <= MAX_OPERATIONS.get(case.isa, math.inf)


def attention_cases(args: argparse.Namespace) -> Iterator[AttentionCase]:
    heads = HEADS[:1] if args.quick else HEADS
    each = itertools.product(args.isas, heads, args.kv_dtypes, ATTENTION_SIZES)
    for isa, (num_heads, num_kv_heads, head_dim), kv_dtype, size in each:
        case = AttentionCase(isa, kv_dtype, num_heads, num_kv_heads, head_dim, *size)
        if case.operations * case.num_layers <= MAX_OPERATIONS.get(isa, math.inf):
            yield case


def report(results: Iterable[Result], limits: Limits, num_threads: int, path: Path | None) -> None:
    results = list(results)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = [result.figures() for result in results]
        content = {"threads": num_threads, "limits": limits.summary(), "kernels": figures}
        path.write_text(json.dumps(content, indent=1), "utf-8")
    print("\n".join([*limits.table(), "", HEADER, *(result.row() for result in results)]))


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    cases: list[Case] = [*linear_cases(args), *attention_cases(args)]
    print(f"{args.threads} threads, {len(cases)} cases, medians of {args.rounds} rounds", flush=True)
    limits = Limits(args.isas, _native.ThreadPool(args.threads))
    report(measure(cases, limits, args.threads, args.rounds), limits, args.threads, args.json)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the kernels against the machine's limits.")
    parser.add_argument("--quick", action="store_true", help="the best instruction set, fewer formats and shapes")
    parser.add_argument("--isas", nargs="+", choices=_native.available_isas())
    parser.add_argument("--formats", nargs="*", choices=format_names())
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="ROWSxCOLUMNS")
    parser.add_argument("--num-tokens", nargs="+", type=int, metavar="M")
    parser.add_argument("--float32", action="store_true", help="float32 activations, as --dtype float32 computes")
    parser.add_argument("--kv-dtypes", nargs="*", default=KV_DTYPES, metavar="DTYPE")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    args.isas = args.isas or ([_native.isa("auto")] if args.quick else _native.available_isas())
    if args.formats is None:
        args.formats = QUICK_FORMATS if args.quick else format_names()
    args.shapes = args.shapes or (QUICK_SHAPES if args.quick else SHAPES)
    args.num_tokens = args.num_tokens or NUM_TOKENS
    return args


def parse_shape(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


if __name__ == "__main__":
    main()
