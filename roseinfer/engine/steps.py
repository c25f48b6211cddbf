"""Computes one planned step after the other: the one place where scheduler and program meet, beside `lookahead`.

A step that raises is computed again row by row: rows do not depend on each other and only write blocks of their own, so
the others go on exactly and the culprit ends alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from roseinfer.backends import Program
from roseinfer.core.batch import SampleOutput
from roseinfer.core.messages import TokenOutput
from roseinfer.core.request import Request
from roseinfer.engine.mask_worker import MaskWorker
from roseinfer.scheduler.batch import Batch, SamplingTable
from roseinfer.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

NOTHING_SAMPLED = SampleOutput(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))
_NO_FAILURES: Mapping[Request, Exception] = {}


class Steps:
    """Computes each step when it is planned. `on_mask` is called, on another thread, after each mask that was filled.

    Masks are filled while the program computes: what they allow depends on the tokens accepted so far, which a step
    does not change before it has sampled.
    """

    def __init__(self, program: Program, scheduler: Scheduler, on_mask: Callable[[], None]) -> None:
        self._program = program
        self._scheduler = scheduler
        self._sampling = SamplingTable(program.vocab_size)
        self._masks = MaskWorker(on_mask)

    @property
    def is_under_way(self) -> bool:
        """Whether a step has been launched whose outputs are still to come."""
        return False

    def run(self, batch: Batch) -> list[TokenOutput]:
        """Computes the batch that was planned last, and says what it has brought."""
        try:
            results = self._compute(batch)
        except Exception as error:
            if len(batch.rows) > 1:
                logger.warning("a step of %d rows failed (%s), trying them one by one", len(batch.rows), error)
                return [output for row in batch.rows for output in self.run(Batch([row]))]
            request = batch.rows[0].request
            logger.exception("request %s failed", request.request_id)
            return [self._scheduler.fail(request, error)]
        return self._scheduler.update(batch, *results)

    def close(self) -> None:
        """Ends the helpers' thread."""
        self._masks.close()

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
        samples = self._program.sample(sampling_inputs) if batch.sampled_requests else NOTHING_SAMPLED
        return samples, self._program.score(score_inputs) if score_inputs else None, failures
