"""The step loop: the one place where scheduler and program meet.

Faults stay where they happen. A request is checked at the door once more, whatever the client did, because a
wrong id would index a table in a kernel. A step that raises is computed again row by row: rows do not depend
on each other and only write blocks of their own, so the others go on exactly and the culprit ends alone.
"""

from __future__ import annotations

import itertools
import logging

import numpy as np

from roseinfer.backends import Program
from roseinfer.core.batch import SampleOutput
from roseinfer.core.messages import AddRequest, EngineStats, StepOutput, TokenOutput
from roseinfer.core.request import Request
from roseinfer.engine.checks import check_request
from roseinfer.scheduler.batch import Batch, SamplingTable
from roseinfer.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

_NOTHING_SAMPLED = SampleOutput(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


class Engine:
    """Runs requests to their end, one `step` after the other, on the caller's thread."""

    def __init__(self, program: Program, scheduler: Scheduler) -> None:
        self._program = program
        self._scheduler = scheduler
        self._sampling = SamplingTable()
        self._outputs: list[TokenOutput] = []  # for the next step: of requests that ended between two steps
        self._arrivals = itertools.count()
        self._num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._outputs) or self._scheduler.has_work

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
        if params.request_id in self._scheduler:
            logger.warning("request %s was added twice", params.request_id)
            return
        try:
            check_request(params, self.vocab_size, self.max_model_len)
            output = self._scheduler.add(Request(params, next(self._arrivals)))
        except Exception as error:  # whatever is wrong with it, it is wrong with this request only
            output = TokenOutput(params.request_id, [], finish_reason="error", error=str(error))
        if output is not None:
            self._outputs.append(output)

    def abort(self, request_id: str) -> None:
        """Ends a request and frees its blocks; an unknown id is fine."""
        output = self._scheduler.abort(request_id)
        if output is not None:
            self._outputs.append(output)

    def step(self) -> StepOutput:
        """Computes one step, if there is anything to compute, and says what it brought."""
        outputs, self._outputs = self._outputs, []
        batch = self._scheduler.schedule()
        if batch:
            outputs += self._run(batch)
            self._num_steps += 1
        return StepOutput(outputs)

    def stats(self) -> EngineStats:
        pool = self._scheduler.block_pool
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_total_blocks=pool.num_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
        )

    def close(self) -> None:
        """Frees the model's memory; nothing can be computed any more."""
        self._program.close()

    def _run(self, batch: Batch) -> list[TokenOutput]:
        try:
            samples = self._compute(batch)
        except Exception as error:
            if len(batch.rows) > 1:
                logger.warning("a step of %d rows failed (%s), trying them one by one", len(batch.rows), error)
                return [output for row in batch.rows for output in self._run(Batch([row]))]
            request = batch.rows[0].request
            logger.exception("request %s failed", request.request_id)
            return [self._scheduler.fail(request, f"the request failed in the engine: {error}")]
        return self._scheduler.update(batch, samples)

    def _compute(self, batch: Batch) -> SampleOutput:
        # Both before the forward, which leaves cold caches behind.
        forward_inputs = batch.forward_inputs()
        sampling_inputs = self._sampling.inputs(batch.sampled_requests)
        self._program.forward(forward_inputs)
        return self._program.sample(sampling_inputs) if batch.sampled_requests else _NOTHING_SAMPLED
