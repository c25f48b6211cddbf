"""What grammars cost: steps with and without them, and a neighbour's tokens while hostile ones are compiled.

    python -m benchmarks.constrained [MODEL] [--batch 8] [--rounds 7]

Both by turns (A B A B), so that they meet the same machine. The first table has the time from token to token of
`batch` sequences, all with a JSON schema or all without; "mixed" has one with a schema among others without, whose
time is told. The second has the time from token to token of one plain stream, alone and while grammars come one after
the other that take long to compile or are refused.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence

from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.inference_engine import InferenceEngine

NUM_TOKENS = 96
PROMPT = "A list of people, as JSON, with name, age, city and three hobbies each:\n"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Paris", "Rome", "London", "Madrid"]},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 40}, "minItems": 3, "maxItems": 3},
    },
    "required": ["name", "age", "city", "hobbies"],
    "additionalProperties": False,
}
PEOPLE = Grammar("json_schema", json.dumps({"type": "array", "items": PERSON, "minItems": 50}))


def hostile_grammar(number: int) -> Grammar:
    """Never the same twice, so that nothing is remembered."""
    wide = {f"k{number}_{i}": {"type": "string", "pattern": f"^(a|b|c)*x{{{i % 40 + 1}}}$"} for i in range(300)}
    return [
        Grammar("json_schema", json.dumps({"type": "object", "properties": wide, "required": list(wide)})),
        Grammar("regex", f"(({number}a{{1,99}}){{1,99}}){{1,99}}"),
        Grammar("json_schema", json.dumps({"enum": [f"{number} {i} {'x' * 20}" for i in range(1500)]})),
        Grammar("regex", "(" * 400 + str(number) + ")" * 400),
    ][number % 4]


def seconds_per_token(engine: InferenceEngine, grammars: Sequence[Grammar | None]) -> list[float]:
    """Of each sequence, all run together."""
    generations = []
    for number, grammar in enumerate(grammars):
        params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.8, seed=number, ignore_eos=True, grammar=grammar)
        ids = engine.tokenizer.encode(f"{number}. {PROMPT}")
        generations += engine.prepare_ids([ids], params)
    for _ in engine.run(generations):
        pass
    records = [generation.record for generation in generations]
    return [record.decode_seconds / max(record.num_output_tokens - 1, 1) for record in records]


def gaps(engine: InferenceEngine) -> list[float]:
    """Seconds between the tokens of one plain stream."""
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    times = [time.perf_counter() for _ in engine.run(engine.prepare_ids([engine.tokenizer.encode(PROMPT)], params))]
    return [after - before for before, after in itertools.pairwise(times)]


class HostileCaller:
    """Asks for one hostile grammar after the other while it is inside a `with` block."""

    def __init__(self, engine: InferenceEngine) -> None:
        self.seconds: list[float] = []  # that each took, until its first token or its refusal
        self._engine = engine
        self._number = 0
        self._is_over = threading.Event()

    def __enter__(self) -> None:
        self._is_over.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._number += 1
            start = time.perf_counter()
            params = SamplingParams(max_tokens=1, grammar=hostile_grammar(self._number))
            with contextlib.suppress(InvalidRequestError):
                list(self._engine.run(self._engine.prepare_ids([[self._number]], params)))
            self.seconds.append(time.perf_counter() - start)


def measure_steps(engine: InferenceEngine, batch: int, rounds: int) -> None:
    kinds: dict[str, Callable[[], float]] = {
        "plain": lambda: statistics.median(seconds_per_token(engine, [None] * batch)),
        "schema": lambda: statistics.median(seconds_per_token(engine, [PEOPLE] * batch)),
        "mixed": lambda: statistics.median(seconds_per_token(engine, [PEOPLE] + [None] * (batch - 1))[1:]),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(rounds + 1):
        for kind, measure in kinds.items():
            taken = measure()
            if round_ > 0:
                seconds[kind].append(taken)
    print(f"{batch} sequences, ms from token to token, median of {rounds} rounds")
    plain = statistics.median(seconds["plain"])
    for kind, taken_all in seconds.items():
        middle = statistics.median(taken_all)
        print(f"  {kind:<8}{middle * 1e3:>8.2f}{middle / plain:>8.2f} x")


def measure_neighbour(engine: InferenceEngine, rounds: int) -> None:
    alone: list[float] = []
    beside: list[float] = []
    caller = HostileCaller(engine)
    gaps(engine)
    for _ in range(rounds):
        alone += gaps(engine)
        with caller:
            beside += gaps(engine)
    print(f"\none plain stream beside {len(caller.seconds)} hostile grammars, ms from token to token")
    for name, taken in (("alone", alone), ("beside", beside)):
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        print(f"  {name:<8}p50{p50 * 1e3:>8.2f}   p99{p99 * 1e3:>8.2f}")
    print(f"  p50 ratio {statistics.median(beside) / statistics.median(alone):.2f}")
    print(f"  grammars: median {statistics.median(caller.seconds):.2f} s, longest {max(caller.seconds):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what grammars cost.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with InferenceEngine(args.model) as engine:
        measure_steps(engine, args.batch, args.rounds)
        measure_neighbour(engine, args.rounds)


if __name__ == "__main__":
    main()
