"""The CUDA backend against the GPU's limits, and against transformers on the same card.

    python -m benchmarks.cuda [--only limits decode ...] [--rounds 5] [--json build/bench/cuda.json]
    TRITON_INTERPRET=1 python -m benchmarks.cuda --tiny     # on the CPU: everything runs, the figures mean nothing

limits       copy and read rates of the memory, rate of matrix products by cuBLAS
decode       a step of one row of a 1B-shaped bf16 model; limit: bytes of weights, keys and values / copy rate
batch        a step of 64 rows, each at its token 256; the same limit
prefill      8,192 tokens through 7B-shaped bf16 layers; limit: the rate of a large product; also with --fast
quantised    decode with q4_k, q8_0, q4_0 and fp8 weights; limit: their bytes
profile      each kind of operation of a decode step and of a prefill step; limit: bytes or products, whatever is more
offline      128 requests of 256 tokens in and 64 out, GPT-2 124M-shaped, fp16; whether the device waits for the host
start        `roseinfer serve` of the 1B model from safetensors to the first token over HTTP

Weights are random. Medians of rounds in which what is compared takes turns, its limit included; compare figures of one
run only. A part that fails is said and left out; the exit status is 1 then. Whether results are right is what
`python -m pytest -m cuda` says.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cuda_device import clocks, describe, release
from benchmarks.cuda_figures import HEADER, Figure
from benchmarks.cuda_models import FULL, TINY
from benchmarks.cuda_offline import offline
from benchmarks.cuda_start import start
from benchmarks.cuda_steps import Bench, decode_batch, decode_one, limits, prefill, profile, quantised
from roseinfer.backends.cuda.device import open_device
from roseinfer.core.errors import DeviceError

Part = Callable[[Bench], Iterator[Figure]]
PARTS: dict[str, Part] = {
    "limits": limits,
    "decode": decode_one,
    "batch": decode_batch,
    "prefill": prefill,
    "quantised": quantised,
    "profile": profile,
    "offline": offline,
    "start": start,
}


class Report:
    """Prints figures as they come, and keeps the file up to date: who runs out of time has those until then."""

    def __init__(self, facts: dict[str, str], path: Path | None) -> None:
        self._content: dict[str, Any] = {"facts": facts, "parts": {}, "failed": {}}
        self._path = path
        for name, value in facts.items():
            print(f"{name:<16}{value}")

    @property
    def has_failures(self) -> bool:
        return bool(self._content["failed"])

    def run(self, name: str, part: Part, bench: Bench) -> None:
        print(f"\n{name}\n{HEADER}", flush=True)
        figures = self._content["parts"].setdefault(name, [])
        try:
            for figure in part(bench):
                print(figure.row(), flush=True)
                figures.append(asdict(figure))
        except (Exception, SystemExit) as error:  # the others may do without it
            traceback.print_exc()
            print(f"{name} failed: {error}", flush=True)
            self._content["failed"][name] = repr(error)
        if after := clocks(bench.device):
            print(f"clocks then: {after}", flush=True)
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._content, indent=1), "utf-8")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        device = open_device()
    except DeviceError as error:
        raise SystemExit(f"{error}; TRITON_INTERPRET=1 and --tiny run on the CPU") from None
    sizes = TINY if args.tiny else FULL
    report = Report(describe(device), args.json)
    bench = Bench(device, sizes, args.rounds, args.layers or sizes.stack_layers)
    for name in args.only or PARTS:
        report.run(name, PARTS[name], bench)
        release()
    return int(report.has_failures)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the CUDA backend against the GPU's limits.")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts, in this order")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--layers", type=int, default=0, help="7B-shaped layers of prefill (default: 8; a model has 32)"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
