"""Runs requests through engines that come and go, as a client sees it whose engine dies now and then."""

from __future__ import annotations

import os
import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.kept_blocks import KeptBlocks
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.messages import AddRequest, TokenOutput
from roseinfer.engine.engine import Engine
from roseinfer.scheduler.batch import Batch
from roseinfer.scheduler.scheduler import Scheduler
from tests.chaos.answer import Answer
from tests.chaos.subjects import SteppedGrammars, Subject
from tests.variants import BLOCK_SIZE, NUM_BLOCKS

MAX_STEPS = 20_000
IDENTITY = bytes(32)

Causes = defaultdict[str, set[str]]  # request id → what happened to it that must make no difference


@dataclass(frozen=True)
class Schedule:
    """How requests are cut into steps, and how often something happens to them, per step."""

    max_batch_tokens: int
    max_chunk_tokens: int | None = None
    max_running: int = 1
    num_blocks: int = NUM_BLOCKS
    use_prefix_cache: bool = False
    num_score_rows: int = 512  # of logits, beside those of running requests
    threads: tuple[int, ...] = (1,)  # each engine draws one of them
    arrivals_per_step: int = 1
    abort_rate: float = 0.0
    restart_rate: float = 0.0
    max_restarts: int = 3


class WatchedScheduler(Scheduler):
    """Notes what becomes of its requests."""

    causes: Causes

    def schedule(self) -> Batch:
        batch = super().schedule()
        for row in batch.rows:
            request = row.request
            happened = {
                "batched": len(batch.rows) > 1,
                "chunked": row.num_new_tokens < request.num_uncomputed_tokens,
                "cached": request.num_cached_tokens > 0,
                "preempted": request.num_preemptions > 0,
            }
            self.causes[request.request_id].update(cause for cause, is_so in happened.items() if is_so)
        return batch


class Session:
    """One run of `requests`. What earlier runs left in the KV memory of the subject's programs is still there."""

    def __init__(self, subject: Subject, schedule: Schedule, rng: random.Random) -> None:
        self.answers: dict[str, Answer] = {}
        self.causes: Causes = defaultdict(set)
        self._num_steps = self._num_restarts = 0
        self._subject = subject
        self._schedule = schedule
        self._rng = rng
        self._live: dict[str, AddRequest] = {}
        self._lists: dict[int, int] = {}  # of what is in each program's KV memory: files, by the number of threads
        self._start_engine()

    def run(self, requests: Sequence[AddRequest]) -> None:
        """To the end of all of them; raises AssertionError if the books of the KV blocks do not agree then."""
        coming = deque(requests)
        while coming or self._live:
            for _ in range(min(self._schedule.arrivals_per_step, len(coming))):
                self._add(coming.popleft())
            if self._live and self._rng.random() < self._schedule.abort_rate:
                self._abort(self._rng.choice(list(self._live)))
            self._step()
        self._check_books()
        self._forget_lists()

    def _add(self, request: AddRequest) -> None:
        self.answers[request.request_id] = Answer()
        self._live[request.request_id] = request
        self._submit(request)

    def _submit(self, request: AddRequest) -> None:
        self.causes[request.request_id].add(f"{self._num_threads} threads")
        self._engine.add(request)

    def _abort(self, request_id: str) -> None:
        """The client has gone: whatever still comes is not for it."""
        del self._live[request_id]
        self.answers[request_id].take(TokenOutput(request_id, [], finish_reason="abort"))
        self._engine.abort(request_id)
        for other in self._live:
            self.causes[other].add("beside an abort")

    def _step(self) -> None:
        assert self._num_steps < MAX_STEPS, f"no end after {MAX_STEPS} steps"
        self._num_steps += 1
        self._grammars.tick()
        outputs = self._engine.step().outputs
        is_killed = (
            self._num_restarts < self._schedule.max_restarts and self._rng.random() < self._schedule.restart_rate
        )
        if is_killed and self._rng.random() < 0.5:
            outputs = []  # computed, but never sent
        for output in outputs:
            self._take(output)
        if is_killed:
            self._restart()

    def _take(self, output: TokenOutput) -> None:
        if output.request_id not in self._live:
            return
        answer = self.answers[output.request_id]
        answer.take(output)
        if answer.is_finished:
            del self._live[output.request_id]

    # -- engines --------------------------------------------------------------------------------------------------

    def _start_engine(self) -> None:
        self._num_threads = self._rng.choice(self._schedule.threads)
        self._grammars = SteppedGrammars(self._subject.compiler, self._rng)
        self._scheduler = self._make_scheduler(self._kept_blocks())
        program = self._subject.program(self._num_threads)
        # Never closed: that would close the program, which others go on with.
        self._engine = Engine(program, self._scheduler, self._grammars)  # type: ignore[arg-type]

    def _kept_blocks(self) -> KeptBlocks | None:
        """What the last engine with the same program has left; the program's memory is as that one left it."""
        if not self._schedule.use_prefix_cache or not hasattr(os, "memfd_create"):
            return None
        if self._num_threads not in self._lists:
            self._lists[self._num_threads] = os.memfd_create("kept")
        return KeptBlocks(self._lists[self._num_threads], IDENTITY, self._schedule.num_blocks, 0)

    def _make_scheduler(self, kept: KeptBlocks | None) -> Scheduler:
        schedule, limit = self._schedule, self._subject.max_step_tokens
        max_running = min(schedule.max_running, schedule.max_batch_tokens)
        pool = BlockPool(schedule.num_blocks, BLOCK_SIZE, kept)
        scheduler = WatchedScheduler(
            block_pool=pool,
            prefix_cache=PrefixCache(pool) if schedule.use_prefix_cache else None,
            max_batch_tokens=schedule.max_batch_tokens,
            max_running=max_running,
            max_logit_rows=min(max_running + schedule.num_score_rows, limit),
            max_model_len=self._subject.max_model_len,
            max_chunk_tokens=schedule.max_chunk_tokens,
        )
        scheduler.causes = self.causes
        return scheduler

    def _restart(self) -> None:
        """Another engine takes every live request with the ids that its client has, in any order.

        It finds what the last one with its program has left in the KV cache, or nothing.
        """
        self._num_restarts += 1
        if self._rng.random() < 0.5:
            self._forget_lists()
        self._start_engine()
        happened = {"restarted"} | ({"restarted with its cache"} if self._scheduler.block_pool.num_cached else set())
        for request_id in self._rng.sample(list(self._live), len(self._live)):
            self.causes[request_id] |= happened
            self._submit(self._resubmission(request_id))

    def _forget_lists(self) -> None:
        for fd in self._lists.values():
            os.close(fd)
        self._lists.clear()

    def _resubmission(self, request_id: str) -> AddRequest:
        """What has come already, the prompt's logprobs among it, may be asked for again or not."""
        request, answer = self._live[request_id], self.answers[request_id]
        is_told = bool(answer.prompt_logprobs) and self._rng.random() < 0.5
        return msgspec.structs.replace(
            request,
            output_ids=list(answer.token_ids),
            num_prompt_logprobs=-1 if is_told else request.num_prompt_logprobs,
        )

    def _check_books(self) -> None:
        while self._engine.has_work:
            self._step()
        self._scheduler.check()
        stats = self._engine.stats()
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks, "KV blocks are lost"
