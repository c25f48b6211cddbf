"""What the equality suites share: a workload, ways to cut it into steps, and a model whose answers must not change.

The reference of a request is its run alone: one chunk, no prefix cache, one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from roseinfer.backends import Program
from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.messages import AddRequest, EngineStats
from roseinfer.engine.engine import Engine
from roseinfer.models import Model
from roseinfer.scheduler.scheduler import Scheduler
from tests import tiny_models
from tests.fake_engine import make_request
from tests.fake_grammars import FakeCompiler, hashed_grammar
from tests.full_engine import FullTranscript
from tests.harness import compile_model
from tests.variants import BLOCK_SIZE, MAX_STEP_TOKENS, NUM_BLOCKS, Variant

MAX_RUNNING = 32
SPLIT = 256  # attention merges its partial sums at multiples of this position

# -- what is run --------------------------------------------------------------------------------------------------


def prompts() -> list[list[int]]:
    """32 prompts: most start with one of two shared texts, and lengths lie at and beside the borders of blocks and
    splits. The first seven hold one of each kind.
    """
    rng = np.random.default_rng(0)
    short, long = (rng.integers(0, tiny_models.VOCAB_SIZE, n).tolist() for n in (70, 2 * SPLIT))
    lengths = [5, SPLIT, 33, 17, SPLIT - 6, 64, 48, SPLIT + 1, 1, 15, 16, 31, 32, 65, 69, 70, SPLIT + 40]
    made = [(long if n > 70 else short)[:n] for n in lengths]
    made += [short[: 16 * (i % 4)] + rng.integers(0, tiny_models.VOCAB_SIZE, 1 + 3 * i).tolist() for i in range(15)]
    return made


def workload() -> list[AddRequest]:
    """Greedy and sampled in turn."""
    return [
        make_request(
            f"r{i}",
            prompt,
            max_tokens=5 + 3 * (i % 4),
            temperature=0.0 if i % 2 else 0.9,
            top_k=(0, 40)[i % 3 == 0],
            top_p=(1.0, 0.9)[i % 5 == 0],
            seed=1000 + i,
            choice=i % 3,
            num_logprobs=3,
        )
        for i, prompt in enumerate(prompts())
    ]


WORKLOAD = workload()


def wishes() -> list[AddRequest]:
    """Requests that want everything that can be wanted of logits and prompts, first together and then one by one."""
    rng = np.random.default_rng(2)
    ids = rng.permutation(tiny_models.VOCAB_SIZE).tolist()
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7}
    bias = {"logit_bias": {token_id: (-1.0) ** i * i for i, token_id in enumerate(ids[:30])}}
    forbidden = {"bad_words_ids": [[i] for i in ids[:50]] + [[i, ids[70]] for i in ids[:70]], "min_tokens": 6}
    allowed = {"allowed_token_ids": ids[tiny_models.VOCAB_SIZE // 4 :]}
    grammar = {"grammar": hashed_grammar(7)}
    scores = {"num_prompt_logprobs": 3}
    wanted: list[dict[str, Any]] = [
        {**penalties, **bias, **forbidden, **allowed, **grammar, **scores, "priority": 1},
        {**scores, "cache_salt": "salt"},
        {**penalties, "priority": -1},
        {**bias, "num_prompt_logprobs": 0},
        {**forbidden, **allowed},
        grammar,
    ]
    return [
        msgspec.structs.replace(request, request_id=f"wish{i}", stop_token_ids=ids[-40:], max_tokens=9, **fields)
        for i, (request, fields) in enumerate(zip(WORKLOAD[1:], wanted, strict=False))
    ]


WISHES = wishes()


@dataclass(frozen=True)
class Schedule:
    """How the workload is cut into steps."""

    max_batch_tokens: int = MAX_STEP_TOKENS
    max_chunk_tokens: int | None = None
    max_running: int = MAX_RUNNING
    num_blocks: int = NUM_BLOCKS
    use_prefix_cache: bool = False
    num_threads: int = 1
    arrivals_per_step: int = MAX_RUNNING  # how many requests come before each step
    num_score_rows: int = MAX_STEP_TOKENS  # of logits, beside those of running requests

    def make_scheduler(self) -> Scheduler:
        pool = BlockPool(self.num_blocks, BLOCK_SIZE)
        max_running = min(self.max_running, self.max_batch_tokens)
        return Scheduler(
            block_pool=pool,
            prefix_cache=PrefixCache(pool) if self.use_prefix_cache else None,
            max_batch_tokens=self.max_batch_tokens,
            max_running=max_running,
            max_logit_rows=min(max_running + self.num_score_rows, MAX_STEP_TOKENS),
            max_model_len=tiny_models.MAX_POSITIONS,
            max_chunk_tokens=self.max_chunk_tokens,
        )


@dataclass
class Subject:
    """A variant's programs, and what each request of the workload is answered alone."""

    variant: Variant
    model: Model
    backend: str = "native"
    programs: dict[int, Program] = field(default_factory=dict)
    _alone: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_slow(self) -> bool:
        """A hundred times slower than the others: made for correctness, and run on less."""
        return self.variant.isa == "scalar"

    def program(self, num_threads: int = 1) -> Program:
        if num_threads not in self.programs:
            self.programs[num_threads] = compile_model(self.backend, self.model, self.variant.options(num_threads))
        return self.programs[num_threads]

    def engine(self, scheduler: Scheduler, num_threads: int = 1) -> Engine:
        program = self.program(num_threads)
        return Engine(program, scheduler, FakeCompiler(program.vocab_size))  # type: ignore[arg-type]

    def alone(self, request: AddRequest) -> tuple[Any, ...]:
        if request.request_id not in self._alone:
            transcript, stats = self.run([request], Schedule())
            num_tokens = len(transcript.token_ids[request.request_id])
            assert stats.num_steps == num_tokens > 0, "the prompt was not one chunk"
            self._alone[request.request_id] = transcript.result(request.request_id)
        return self._alone[request.request_id]

    def run(self, requests: Sequence[AddRequest], schedule: Schedule) -> tuple[FullTranscript, EngineStats]:
        """Whatever earlier runs left in the KV memory is still there."""
        scheduler = schedule.make_scheduler()
        engine = self.engine(scheduler, schedule.num_threads)
        transcript = run_as_they_come(engine, requests, schedule.arrivals_per_step)
        scheduler.check()
        return transcript, engine.stats()

    def check(self, requests: Sequence[AddRequest], schedule: Schedule) -> tuple[FullTranscript, EngineStats]:
        """Every request is answered as it is alone."""
        transcript, stats = self.run(requests, schedule)
        for request in requests:
            assert transcript.result(request.request_id) == self.alone(request), request.request_id
        return transcript, stats


def run_as_they_come(engine: Engine, requests: Sequence[AddRequest], arrivals_per_step: int) -> FullTranscript:
    transcript, coming = FullTranscript(), deque(requests)
    while coming or engine.has_work:
        for _ in range(min(arrivals_per_step, len(coming))):
            engine.add(coming.popleft())
        transcript.add(engine.step().outputs)
    return transcript
