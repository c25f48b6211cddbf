"""Engines over the fake program for requests with everything: grammars, prompts' logprobs, edits of logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from roseinfer.core.messages import AddRequest, PromptLogprobs, TokenOutput
from roseinfer.engine.engine import Engine
from roseinfer.scheduler.scheduler import Scheduler
from tests.fake_engine import Transcript, make_scheduler
from tests.fake_grammars import FakeCompiler
from tests.fake_program import FakeProgram


class FullTranscript(Transcript):
    """Knows the prompts' logprobs too, which come with the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.firsts: dict[str, TokenOutput] = {}

    def add(self, outputs: Iterable[TokenOutput]) -> None:
        for output in outputs:
            if output.token_ids:
                first = self.firsts.setdefault(output.request_id, output)
                assert first is output or output.prompt_logprobs is None
                assert first is output or (output.queue_seconds, output.prefill_seconds) == (0.0, 0.0)
            super().add([output])

    def result(self, request_id: str) -> tuple[Any, ...]:
        return (*super().result(request_id), self.prompt_logprobs(request_id))

    def prompt_logprobs(self, request_id: str) -> PromptLogprobs | None:
        first = self.firsts.get(request_id)
        return first.prompt_logprobs if first else None


def make_full_scheduler(num_score_rows: int = 0, **options: Any) -> Scheduler:
    """The program has so many rows of logits more than there are requests running."""
    scheduler = make_scheduler(**options)
    scheduler.max_logit_rows += num_score_rows
    return scheduler


def make_full_engine(scheduler: Scheduler, grammars: FakeCompiler | None = None, **options: Any) -> Engine:
    program = FakeProgram(
        num_blocks=scheduler.block_pool.num_blocks,
        block_size=scheduler.block_pool.block_size,
        max_batch_tokens=scheduler.max_batch_tokens,
        max_logit_rows=scheduler.max_logit_rows,
        **options,
    )
    return Engine(program, scheduler, grammars or FakeCompiler())  # type: ignore[arg-type]


def run_fully(engine: Engine, max_steps: int = 10_000) -> FullTranscript:
    transcript = FullTranscript()
    for _ in range(max_steps):
        if not engine.has_work:
            return transcript
        transcript.add(engine.step().outputs)
    raise AssertionError(f"work left after {max_steps} steps")


def run_fully_alone(params: AddRequest, max_model_len: int = 128, **options: Any) -> tuple[Any, ...]:
    """The result of a request that has an engine for itself: one chunk, no cache, no neighbour."""
    scheduler = make_full_scheduler(
        num_score_rows=255,
        num_blocks=256,
        use_prefix_cache=False,
        max_batch_tokens=256,
        max_running=1,
        max_model_len=max_model_len,
    )
    engine = make_full_engine(scheduler, **options)
    engine.add(params)
    result = run_fully(engine).result(params.request_id)
    engine.close()
    return result
