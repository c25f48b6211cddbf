"""Requests come in, step after step is computed, outputs go out.

Faults stay where they happen. A request is checked at the door once more, whatever the client did, because a
wrong id would index a table in a kernel. A step that fails is computed again, see `steps`.

A grammar is compiled before its request goes to the scheduler.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from roseinfer.backends import LookaheadProgram, Program
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import AddRequest, EngineStats, StepOutput, TokenOutput
from roseinfer.core.request import Request
from roseinfer.engine.checks import check_request
from roseinfer.engine.lookahead import LookaheadSteps
from roseinfer.engine.pending_grammars import PendingGrammars, start_constraint
from roseinfer.engine.steps import Steps
from roseinfer.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from roseinfer.constraints import GrammarCompiler
    from roseinfer.core.batch import UInt64Array

logger = logging.getLogger(__name__)


class Engine:
    """Runs requests to their end, one `step` after the other, on the caller's thread.

    `on_ready` is called from any thread when there may be work again though nothing was added: a grammar has been
    compiled. Without `grammars`, requests with one are refused. `progress_counter` [1] is raised with each piece of the
    grammars' work, which the program does not see.
    """

    def __init__(
        self,
        program: Program,
        scheduler: Scheduler,
        grammars: GrammarCompiler | None = None,
        progress_counter: UInt64Array | None = None,
    ) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self._program = program
        self._scheduler = scheduler
        self._grammars = grammars
        self._pending = PendingGrammars(grammars, lambda: self.on_ready())
        self._steps = _make_steps(program, scheduler, self._count_progress)
        self._progress_counter = progress_counter
        self._outputs: list[TokenOutput] = []  # for the next step: of requests that ended between two steps
        self._arrivals = itertools.count()
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        has_requests = self._scheduler.has_work or self._pending.has_ready
        return has_requests or bool(self._outputs) or self._steps.is_under_way

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together, as far as the model and the KV cache allow."""
        return self._scheduler.max_model_len

    @property
    def max_running(self) -> int:
        return self._scheduler.max_running

    @property
    def vocab_size(self) -> int:
        return self._program.vocab_size

    def add(self, params: AddRequest) -> None:
        """Queues a request. A bad one becomes an output with an error; an id that is in the engine is left alone."""
        if not isinstance(params.request_id, Hashable):
            logger.error("a request came without a name that its errors could be sent to")
            return
        if params.request_id in self._scheduler or params.request_id in self._pending:
            logger.warning("request %s was added twice", params.request_id)
            return
        try:
            check_request(params, self.vocab_size, self.max_model_len)
            request = Request(params, next(self._arrivals))
            if params.grammar is None:
                self._put(self._scheduler.add(request))
            else:
                self._pending.add(request)
        except Exception as error:  # whatever is wrong with it, it is wrong with this request only
            self._put(_refusal(params.request_id, error))

    def abort(self, request_id: str) -> None:
        """Ends a request and frees its blocks; an unknown id is fine."""
        if self._pending.remove(request_id):
            self._put(TokenOutput(request_id, [], finish_reason="abort"))
        self._put(self._scheduler.abort(request_id))

    def step(self) -> StepOutput:
        """Computes one step, or launches it and collects the one before; says what was brought, if anything was."""
        self._start_compiled()
        outputs, self._outputs = self._outputs, []
        batch = self._scheduler.schedule()
        if batch or self._steps.is_under_way:
            outputs += self._steps.run(batch)
            self._num_steps += bool(batch)
        elif (stuck := self._scheduler.fail_stuck()) is not None:
            outputs.append(stuck)
        return StepOutput(outputs)

    def stats(self) -> EngineStats:
        pool = self._scheduler.block_pool
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + len(self._pending),
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_total_blocks=pool.num_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
            num_prefix_queries=self._scheduler.num_prefix_queries,
            num_prefix_hits=self._scheduler.num_prefix_hits,
        )

    def close(self) -> None:
        """Frees the model's memory and ends the helpers' threads; nothing can be computed any more."""
        self._steps.close()
        if self._grammars is not None:
            self._grammars.close()
        self._program.close()

    def _put(self, output: TokenOutput | None) -> None:
        if output is not None:
            self._outputs.append(output)

    def _start_compiled(self) -> None:
        for request, grammar in self._pending.take_ready():
            try:
                request.constraint = start_constraint(grammar.result(), request)
                self._put(self._scheduler.add(request))
            except Exception as error:
                self._put(_refusal(request.request_id, error))
            self._count_progress()  # a request that goes on brings thousands of tokens to accept

    def _count_progress(self) -> None:
        if self._progress_counter is not None:
            self._progress_counter[0] += 1


def _make_steps(program: Program, scheduler: Scheduler, on_mask: Callable[[], None]) -> Steps | LookaheadSteps:
    steps = Steps(program, scheduler, on_mask)
    return LookaheadSteps(program, scheduler, steps) if isinstance(program, LookaheadProgram) else steps


def _refusal(request_id: str, error: Exception) -> TokenOutput:
    """For a request that cannot be started; names the field if the caller is to blame."""
    param = error.param if isinstance(error, InvalidRequestError) else None
    return TokenOutput(request_id, [], finish_reason="error", error=str(error) or repr(error), error_param=param)
