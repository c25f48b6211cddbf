"""Engines over the fake program, and what tests do with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.messages import AddRequest, TokenOutput
from roseinfer.engine.engine import Engine
from roseinfer.scheduler.scheduler import Scheduler
from tests.fake_program import FakeProgram


def make_scheduler(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    use_prefix_cache: bool = True,
    max_batch_tokens: int = 64,
    max_running: int = 8,
    max_model_len: int = 128,
    max_chunk_tokens: int | None = None,
) -> Scheduler:
    pool = BlockPool(num_blocks, block_size)
    return Scheduler(
        block_pool=pool,
        prefix_cache=PrefixCache(pool) if use_prefix_cache else None,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        max_model_len=max_model_len,
        max_chunk_tokens=max_chunk_tokens,
    )


def make_program(scheduler: Scheduler, **options: Any) -> FakeProgram:
    return FakeProgram(
        num_blocks=scheduler.block_pool.num_blocks,
        block_size=scheduler.block_pool.block_size,
        max_batch_tokens=scheduler.max_batch_tokens,
        max_logit_rows=scheduler.max_running,
        **options,
    )


def make_engine(scheduler: Scheduler | None = None, **options: Any) -> Engine:
    scheduler = scheduler or make_scheduler()
    return Engine(make_program(scheduler, **options), scheduler)


def make_request(request_id: str, prompt_ids: Iterable[int], **fields: Any) -> AddRequest:
    defaults: dict[str, Any] = {
        "max_tokens": 8,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "choice": 0,
        "stop_token_ids": [],
        "num_logprobs": -1,
    }
    return AddRequest(request_id=request_id, prompt_ids=list(prompt_ids), **{**defaults, **fields})


class Transcript:
    """What an engine said, by request."""

    def __init__(self) -> None:
        self.token_ids: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[float]] = {}
        self.top_ids: dict[str, list[list[int]]] = {}
        self.top_logprobs: dict[str, list[list[float]]] = {}
        self.ends: dict[str, TokenOutput] = {}

    def add(self, outputs: Iterable[TokenOutput]) -> None:
        for output in outputs:
            assert output.request_id not in self.ends, f"{output} after its end"
            self.token_ids.setdefault(output.request_id, []).extend(output.token_ids)
            self.logprobs.setdefault(output.request_id, []).extend(output.logprobs)
            self.top_ids.setdefault(output.request_id, []).extend(output.top_ids)
            self.top_logprobs.setdefault(output.request_id, []).extend(output.top_logprobs)
            if output.finish_reason is not None:
                self.ends[output.request_id] = output

    def result(self, request_id: str) -> tuple[Any, ...]:
        """All that must not depend on how the request was computed."""
        end = self.ends[request_id]
        return (
            self.token_ids[request_id],
            self.logprobs[request_id],
            self.top_ids[request_id],
            self.top_logprobs[request_id],
            end.finish_reason,
            end.stop_token_id,
        )


def run_to_end(engine: Engine, max_steps: int = 10_000) -> Transcript:
    transcript = Transcript()
    for _ in range(max_steps):
        if not engine.has_work:
            return transcript
        transcript.add(engine.step().outputs)
    raise AssertionError(f"work left after {max_steps} steps")


def run_alone(params: AddRequest, max_model_len: int = 128, **options: Any) -> tuple[Any, ...]:
    """The result of a request that has an engine for itself: one chunk, no cache, no neighbour."""
    scheduler = make_scheduler(
        num_blocks=256, use_prefix_cache=False, max_batch_tokens=256, max_running=1, max_model_len=max_model_len
    )
    engine = make_engine(scheduler, **options)
    engine.add(params)
    return run_to_end(engine).result(params.request_id)
