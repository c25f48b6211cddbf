"""How the cost grows with the context: seconds to read a prompt, and per generated token behind it.

    python -m benchmarks.growth [MODEL ...] [--rounds 3] [--max-len 8192] [--json growth.json]

The engine in this process, one request at a time, greedy, end of sequence ignored, prompts of random tokens, distinct
in every request. Prefill is submit → first token; TPOT = (last - first) / (output - 1), at a context of the prompt and
half of the output. Medians of rounds in which the lengths take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.client import EngineClient
from roseinfer.inference_engine import InferenceEngine

SHORTEST = 16
OUTPUT_LEN = 32


@dataclass(frozen=True)
class Point:
    prompt_len: int
    context: int  # at which the tokens are generated, on average
    prefill: float  # seconds
    tpot: float  # seconds


def prompt_lens(longest: int) -> list[int]:
    """Powers of two, and the longest there may be."""
    lens = [SHORTEST << i for i in range(20) if SHORTEST << i < longest]
    return [*lens, longest]


def run(client: EngineClient, prompt_len: int, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds until the first token, and per token behind it."""
    prompt = rng.integers(0, client.vocab_size, prompt_len).tolist()
    params = SamplingParams(max_tokens=OUTPUT_LEN, temperature=0.0, ignore_eos=True)
    request = client.make_request(prompt, params)
    start = time.perf_counter()
    arrivals = [time.perf_counter() for output in client.stream_sync(request) for _ in output.token_ids]
    return arrivals[0] - start, (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)


def measure(client: EngineClient, longest: int, num_rounds: int) -> Iterator[Point]:
    rng = np.random.default_rng(0)
    lens = prompt_lens(min(longest, client.max_model_len) - OUTPUT_LEN)
    run(client, lens[0], rng)  # the first step touches memory for the first time
    rounds = [[run(client, prompt_len, rng) for prompt_len in lens] for _ in range(num_rounds)]
    for prompt_len, samples in zip(lens, zip(*rounds, strict=True), strict=True):
        prefill, tpot = (statistics.median(column) for column in zip(*samples, strict=True))
        yield Point(prompt_len, prompt_len + OUTPUT_LEN // 2, prefill, tpot)


def report(name: str, points: list[Point]) -> None:
    print(f"{name}\n{'prompt':>8}{'prefill s':>11}{'tok/s':>8}{'context':>9}{'TPOT ms':>9}{'tok/s':>8}")
    for p in points:
        prefill = f"{p.prompt_len:>8}{p.prefill:>11.3f}{p.prompt_len / p.prefill:>8.0f}"
        print(f"{prefill}{p.context:>9}{p.tpot * 1e3:>9.2f}{1 / p.tpot:>8.0f}")


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    models: dict[str, list[Point]] = {}
    for model in args.models:
        with InferenceEngine(model, threads=args.threads) as engine:
            models[engine.name] = list(measure(engine.client, args.max_len, args.rounds))
            report(engine.name, models[engine.name])
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"models": {name: [asdict(point) for point in points] for name, points in models.items()}}
        args.json.write_text(json.dumps(content, indent=1), "utf-8")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times prompts and contexts of growing length.")
    parser.add_argument("models", nargs="*", default=["smollm2-135m"], metavar="MODEL")
    parser.add_argument("--threads", type=int, default=0, help="0 = one per core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-len", type=int, default=8192, help="of a prompt and its output")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
