"""What everything around the kernels costs: CPU time per step, row, streamed chunk and HTTP request.

    python benchmarks/overhead.py [MODEL] [--rounds 5]

The engine, scheduler, client and HTTP server are the real ones, over a program that computes nothing: its forward reads
as much memory as a small model has, without the GIL, because what comes after a model finds the caches cold. Of MODEL
only the tokenizer is used. The HTTP client is another process. All figures are CPU time (user + system) outside of
forwards, which depends less than wall-clock time on what else the machine does; it still moves, so look at the least
of the rounds as well as at their median.

- step: of the engine's thread from the end of a forward to the begin of the next one, by running requests. "hot" leaves
  the memory reads out.
- chunk: of the whole server while 16 streams get a token in every step, per token.
- request: of the whole server for 8 tokens in and 1 out, per request.
- stall: how much longer than its CPU time a forward takes while 16 streams are served: waiting for a core or the GIL.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.catalog import resolve_model
from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs
from roseinfer.core.config import load_config
from roseinfer.core.interpreter import settle_interpreter
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.client import EngineClient
from roseinfer.engine.engine import Engine
from roseinfer.inference_engine import InferenceEngine
from roseinfer.scheduler.scheduler import Scheduler
from roseinfer.server.app import create_app
from roseinfer.server.http_server import make_server
from roseinfer.server.runner import bind
from roseinfer.text import Tokenizer, load_tokenizer

NUM_STREAMS = 16
STREAM_TOKENS = 128
NUM_ROWS = (1, 16, 64)
NUM_STEPS = {"hot": 1500, "cold": 150}
NUM_REQUESTS = 400
REQUESTS_AT_ONCE = 16
TEXT = " The quick brown fox jumps over the lazy dog, and nobody knows why; perhaps it was late."
MAX_MODEL_LEN = 4096
MODEL_BYTES = 96 * 2**20


@dataclass
class Step:
    """Seconds on several clocks when a forward began: wall, CPU of the process, CPU of the engine's thread."""

    num_rows: int
    wall: float
    process: float
    thread: float
    thread_within: float = 0.0  # CPU time of the forward
    stall: float = 0.0  # wall-clock time of the forward beyond that


class NullProgram:
    """Implements `Program`. Tokens go round in `token_ids`; a forward reads `MODEL_BYTES` where `is_cold`."""

    def __init__(self, vocab_size: int, token_ids: list[int]) -> None:
        self.vocab_size = vocab_size
        self.is_cold = True
        self._token_ids = np.array(token_ids, dtype=np.int32)
        self._weights = np.ones(MODEL_BYTES // 8)
        self.reset()

    def reset(self) -> None:
        self.steps: list[Step] = []

    def forward(self, inputs: ForwardInputs) -> None:
        step = Step(len(inputs.block_tables), time.perf_counter(), time.process_time(), time.thread_time())
        if self.is_cold:
            self._weights.sum()
        step.thread_within = time.thread_time() - step.thread
        step.stall = time.perf_counter() - step.wall - step.thread_within
        self.steps.append(step)

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        token_ids = self._token_ids[inputs.positions % len(self._token_ids)]
        return SampleOutput(token_ids, np.zeros(len(token_ids), dtype=np.float32))

    def logits(self) -> Float32Array:
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        return {"weights": 0, "kv_cache": 0, "activations": 0}

    def close(self) -> None:
        pass


def make_engine(tokenizer: Tokenizer, program: NullProgram) -> InferenceEngine:
    pool = BlockPool(max(NUM_ROWS) * MAX_MODEL_LEN // 16, 16)
    scheduler = Scheduler(
        block_pool=pool,
        prefix_cache=PrefixCache(pool),
        max_batch_tokens=512,
        max_running=max(NUM_ROWS),
        max_model_len=MAX_MODEL_LEN,
    )
    client = EngineClient(Engine(program, scheduler), tokenizer.eos_ids)
    client.start()
    info: Any = SimpleNamespace(name="null", max_model_len=MAX_MODEL_LEN, memory=program.memory())
    return InferenceEngine.from_parts(client, tokenizer, info)


# -- the engine's thread ------------------------------------------------------------------------------------


def step_micros(engine: InferenceEngine, program: NullProgram, num_rows: int, num_steps: int) -> float:
    """Of decode steps of `num_rows` requests; the steps around them, in which requests come and go, are cut off."""
    program.reset()
    finished = threading.Semaphore(0)
    params = SamplingParams(max_tokens=num_steps, temperature=0.0, ignore_eos=True)
    for row in range(num_rows):
        request = engine.client.make_request([row + 1] * 8, params)
        engine.client.submit(request, lambda output: finished.release() if output.finish_reason else None)
    for _ in range(num_rows):
        finished.acquire()
    return statistics.median(thread_seconds(program.steps, num_rows)) * 1e6


def thread_seconds(steps: list[Step], num_rows: int) -> list[float]:
    """CPU time of the engine's thread between the forwards of `num_rows` rows."""
    return [b.thread - a.thread - a.thread_within for a, b in pairwise(steps) if a.num_rows == b.num_rows == num_rows]


def process_seconds(steps: list[Step], num_rows: int) -> list[float]:
    """CPU time of the process from one forward of `num_rows` rows to the next, without the forward's own."""
    return [b.process - a.process - a.thread_within for a, b in pairwise(steps) if a.num_rows == b.num_rows == num_rows]


# -- over HTTP ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What the client process sends; it keeps `num_at_once` requests open until `num_requests` are answered."""

    num_requests: int
    num_at_once: int
    body: dict[str, object]
    keep_alive: bool = True


@dataclass
class Server:
    """The server under test in threads of this process, its client in another one."""

    port: int
    program: NullProgram
    pool: Any = field(repr=False)

    def run(self, load: Load) -> float:
        """CPU seconds of this process outside of forwards."""
        self.program.reset()
        start = time.process_time()
        self.pool.apply(send_load, (self.port, load))
        return time.process_time() - start - sum(step.thread_within for step in self.program.steps)


@contextlib.contextmanager
def serving(engine: InferenceEngine, program: NullProgram) -> Iterator[Server]:
    ready = threading.Event()
    context = multiprocessing.get_context("spawn")
    with bind("127.0.0.1", 0) as listener, context.Pool(1) as pool:
        server = make_server(create_app(engine), "error", ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        ready.wait()
        try:
            yield Server(listener.getsockname()[1], program, pool)
        finally:
            server.should_exit = True
            thread.join()


def send_load(port: int, load: Load) -> None:
    """In the client process."""
    numbers = itertools.count()
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                number = next(numbers)
            if number >= load.num_requests:
                break
            ask(connection, load, number)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(load.num_at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask(connection: http.client.HTTPConnection, load: Load, number: int) -> None:
    body = json.dumps({**load.body, "prompt": f"{number % 10} {load.body['prompt']}"})
    headers = {"Content-Type": "application/json", "Connection": "keep-alive" if load.keep_alive else "close"}
    connection.request("POST", "/generate", body, headers)
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{reply.status}: {content!r:.200}")


TINY = {"prompt": "The capital of France is", "max_new_tokens": 1, "stop_on_eos": False}
STREAMS = Load(
    NUM_STREAMS, NUM_STREAMS, {"prompt": "Once", "max_new_tokens": STREAM_TOKENS, "stop_on_eos": False, "stream": True}
)
REQUESTS = {
    "request, whole reply": Load(NUM_REQUESTS, REQUESTS_AT_ONCE, {**TINY, "stream": False}),
    "request, streamed": Load(NUM_REQUESTS, REQUESTS_AT_ONCE, {**TINY, "stream": True}),
    "request, whole reply, new connection": Load(NUM_REQUESTS, REQUESTS_AT_ONCE, TINY, keep_alive=False),
}

Figures = dict[str, float]


def step_figures(engine: InferenceEngine, program: NullProgram, kind: str) -> Figures:
    program.is_cold = kind == "cold"
    micros = {num_rows: step_micros(engine, program, num_rows, NUM_STEPS[kind]) for num_rows in NUM_ROWS}
    most = NUM_ROWS[-1]
    return {
        **{f"step of {num_rows} rows, {kind}": value for num_rows, value in micros.items()},
        f"each row beyond the first, {kind}": (micros[most] - micros[1]) / (most - 1),
    }


def chunk_figures(server: Server) -> Figures:
    server.program.is_cold = True
    server.run(STREAMS)
    steps = server.program.steps
    stalls = [step.stall for step in steps if step.num_rows == NUM_STREAMS]
    return {
        "chunk": statistics.median(process_seconds(steps, NUM_STREAMS)) / NUM_STREAMS * 1e6,
        "chunk, of it the engine's thread": statistics.median(thread_seconds(steps, NUM_STREAMS)) / NUM_STREAMS * 1e6,
        "stall of a forward, median": statistics.median(stalls) * 1e6,
        "stall of a forward, p99": float(np.percentile(stalls, 99)) * 1e6,
    }


def request_figures(server: Server, name: str) -> Figures:
    server.program.is_cold = True
    return {name: server.run(REQUESTS[name]) / NUM_REQUESTS * 1e6}


def main() -> None:
    args = parse_arguments()
    tokenizer = open_tokenizer(args.model)
    program = NullProgram(tokenizer.vocab_size, tokenizer.encode(TEXT, add_bos=False))
    rounds: list[Figures] = []
    with make_engine(tokenizer, program) as engine, serving(engine, program) as server:
        measurements: list[Callable[[], Figures]] = [
            *(partial(step_figures, engine, program, kind) for kind in NUM_STEPS),
            partial(chunk_figures, server),
            *(partial(request_figures, server, name) for name in REQUESTS),
        ]
        settle_interpreter()
        for _ in range(args.rounds + 1):
            rounds.append({name: value for measure in measurements for name, value in measure().items()})
    print(f"{'microseconds of CPU time':<64}{'median':>8}{'least':>8}{'most':>8}")
    for name in rounds[0]:
        values = [figures[name] for figures in rounds[1:]]  # the first round warms up
        print(f"{name:<64}{statistics.median(values):>8.1f}{min(values):>8.1f}{max(values):>8.1f}")


def open_tokenizer(model: str) -> Tokenizer:
    with open_checkpoint(resolve_model(model, load_config().models_dir)) as checkpoint:
        return load_tokenizer(checkpoint)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU time of everything around the kernels.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="whose tokenizer is used")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
