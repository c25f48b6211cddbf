"""The engine without HTTP: one stream, a long prompt, many requests at once.

    python benchmarks/engine.py [MODEL] [--threads 2] [--rounds 3]

Greedy, end of sequence ignored, prompts distinct in every request and round, so that no prefix is shared.
Formulas: TTFT = submit → first token; TPOT = (last - first) / (output - 1); prefill tok/s = prompt / TTFT;
decode tok/s = 1 / TPOT; output tok/s = all output tokens / wall time. Medians over the rounds, workloads interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from roseinfer.core.messages import TokenOutput
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.client import EngineClient
from roseinfer.inference_engine import InferenceEngine


@dataclass(frozen=True)
class Workload:
    name: str
    num_requests: int
    num_at_once: int
    prompt_len: int
    output_len: int


WORKLOADS = (
    Workload("one stream, 128 in / 128 out", 1, 1, 128, 128),
    Workload("long prompt, 2000 in / 8 out", 1, 1, 2000, 8),
    Workload("16 at once, 32 x 256 in / 64 out", 32, 16, 256, 64),
    Workload("32 at once, 200 x 8 in / 1 out", 200, 32, 8, 1),
)


@dataclass
class Timing:
    """Of one request, in seconds of one clock."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)

    def on_output(self, output: TokenOutput) -> None:
        self.arrivals += [time.perf_counter()] * len(output.token_ids)
        if output.finish_reason is not None:
            self.finished.set()

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.start

    @property
    def tpot(self) -> float:
        return (self.arrivals[-1] - self.arrivals[0]) / max(len(self.arrivals) - 1, 1)


def main() -> None:
    args = parse_arguments()
    start = time.perf_counter()
    with InferenceEngine(args.model, threads=args.threads, max_model_len=args.max_model_len) as engine:
        print(f"loaded {engine.name} ({engine.info.isa}) in {time.perf_counter() - start:.2f} s")
        rng = np.random.default_rng(0)
        figures: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        for _ in range(args.rounds):
            for workload in WORKLOADS:
                figures[workload.name].append(run(engine.client, workload, rng))
    print(f"{'':<36}{'TTFT ms':>9}{'TPOT ms':>9}{'prefill':>9}{'decode':>8}{'output':>8}{'req/s':>7}   (tok/s)")
    for name, rounds in figures.items():
        ttft, tpot, prefill, decode, output, requests = (
            statistics.median(column) for column in zip(*rounds, strict=True)
        )
        print(f"{name:<36}{ttft:>9.1f}{tpot:>9.2f}{prefill:>9.0f}{decode:>8.0f}{output:>8.0f}{requests:>7.1f}")


def run(client: EngineClient, workload: Workload, rng: np.random.Generator) -> tuple[float, ...]:
    """Closed loop: a request starts when one before it has finished."""
    slots = threading.Semaphore(workload.num_at_once)
    timings: list[Timing] = []
    start = time.perf_counter()
    for _ in range(workload.num_requests):
        slots.acquire()
        timings.append(submit(client, workload, rng, slots))
    for timing in timings:
        timing.finished.wait()
    wall = time.perf_counter() - start
    ttft = statistics.median(timing.ttft for timing in timings)
    tpot = statistics.median(timing.tpot for timing in timings)
    output = workload.num_requests * workload.output_len / wall
    return ttft * 1e3, tpot * 1e3, workload.prompt_len / ttft, 1 / tpot if tpot else 0.0, output, len(timings) / wall


def submit(client: EngineClient, workload: Workload, rng: np.random.Generator, slots: threading.Semaphore) -> Timing:
    prompt = rng.integers(0, client.vocab_size, workload.prompt_len).tolist()
    params = SamplingParams(max_tokens=workload.output_len, temperature=0.0, ignore_eos=True)
    timing = Timing(time.perf_counter())

    def on_output(output: TokenOutput) -> None:
        timing.on_output(output)
        if output.finish_reason is not None:
            slots.release()

    client.submit(client.make_request(prompt, params), on_output)
    return timing


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the engine without HTTP.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=0, help="0 = one per core")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
