"""The step loop: the one place where scheduler and program meet.

Faults stay where they happen. A request is checked at the door once more, whatever the client did, because a
wrong id would index a table in a kernel. A step that raises is computed again row by row: rows do not depend
on each other and only write blocks of their own, so the others go on exactly and the culprit ends alone.

A grammar is compiled before its request goes to the scheduler, and its masks are filled while the program computes:
what it allows depends on the tokens accepted so far, which a step does not change before it has sampled.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from roseinfer.backends import Program
from roseinfer.core.batch import SampleOutput
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import AddRequest, EngineStats, StepOutput, TokenOutput
from roseinfer.core.request import Request
from roseinfer.engine.checks import check_request
from roseinfer.engine.mask_worker import MaskWorker
from roseinfer.engine.pending_grammars import PendingGrammars, start_constraint
from roseinfer.scheduler.batch import Batch, SamplingTable
from roseinfer.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from roseinfer.constraints import GrammarCompiler
    from roseinfer.core.batch import UInt64Array

logger = logging.getLogger(__name__)

_NOTHING_SAMPLED = SampleOutput(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))
_NO_FAILURES: Mapping[Request, Exception] = {}


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
        self._sampling = SamplingTable(program.vocab_size)
        self._masks = MaskWorker(self._count_progress)
        self._progress_counter = progress_counter
        self._outputs: list[TokenOutput] = []  # for the next step: of requests that ended between two steps
        self._arrivals = itertools.count()
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._outputs) or self._scheduler.has_work or self._pending.has_ready

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
        """Computes one step, if there is anything to compute, and says what it brought."""
        self._start_compiled()
        outputs, self._outputs = self._outputs, []
        batch = self._scheduler.schedule()
        if batch:
            outputs += self._run(batch)
            self._num_steps += 1
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
        self._masks.close()
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

    def _run(self, batch: Batch) -> list[TokenOutput]:
        try:
            results = self._compute(batch)
        except Exception as error:
            if len(batch.rows) > 1:
                logger.warning("a step of %d rows failed (%s), trying them one by one", len(batch.rows), error)
                return [output for row in batch.rows for output in self._run(Batch([row]))]
            request = batch.rows[0].request
            logger.exception("request %s failed", request.request_id)
            return [self._scheduler.fail(request, error)]
        return self._scheduler.update(batch, *results)

    def _compute(self, batch: Batch) -> tuple[SampleOutput, SampleOutput | None, Mapping[Request, Exception]]:
        """Samples, scores, and the requests whose mask could not be filled."""
        # All inputs before the forward, which leaves cold caches behind.
        forward_inputs = batch.forward_inputs()
        sampling_inputs = self._sampling.inputs(batch.sampled_requests, batch.sample_rows())
        score_inputs = batch.score_inputs()
        filling = self._masks.start(batch.sampled_requests, sampling_inputs.edits)
        try:
            self._program.forward(forward_inputs)
        finally:  # whatever comes next may ask the constraints again
            failures = filling.result() if filling else _NO_FAILURES
        samples = self._program.sample(sampling_inputs) if batch.sampled_requests else _NOTHING_SAMPLED
        return samples, self._program.score(score_inputs) if score_inputs else None, failures


def _refusal(request_id: str, error: Exception) -> TokenOutput:
    """For a request that cannot be started; names the field if the caller is to blame."""
    param = error.param if isinstance(error, InvalidRequestError) else None
    return TokenOutput(request_id, [], finish_reason="error", error=str(error) or repr(error), error_param=param)
