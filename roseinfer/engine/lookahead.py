"""Launches each step while the one before is under way.

So the device waits neither for the scheduler, nor for what else is done between two steps. The outputs of a step come
when the next one has been launched, and a request that ends by a token which nobody could foresee has a row too many.

What cannot be launched ahead is computed by `Steps`, with nothing under way: a step whose launch or computation failed,
and one that samples rows whose logits are edited. Penalties, bad words and grammars look at all the tokens before, so
such a row can be planned only when these are known, and a step with one has nothing to gain.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

from roseinfer.backends import Launched, LookaheadProgram
from roseinfer.core.batch import SampleOutput
from roseinfer.core.messages import TokenOutput
from roseinfer.engine.steps import NOTHING_SAMPLED, Steps
from roseinfer.scheduler.batch import Batch, SamplingTable
from roseinfer.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

Results: TypeAlias = "tuple[SampleOutput, SampleOutput | None]"  # what was sampled, and what was scored


class StepUnderWay:
    """A batch and its launch."""

    def __init__(self, batch: Batch, launched: Launched) -> None:
        self.batch = batch
        self._launched = launched

    def collect(self) -> Results | None:
        """Waits for the step; None if it has failed."""
        try:
            samples, scores = self._launched.collect()
        except Exception as error:
            logger.warning("a step of %d rows failed: %s", len(self.batch.rows), error)
            return None
        return NOTHING_SAMPLED if samples is None else samples, scores


class LookaheadSteps:
    """Has at most one step under way between two calls. `steps` computes what is not launched."""

    def __init__(self, program: LookaheadProgram, scheduler: Scheduler, steps: Steps) -> None:
        self._program = program
        self._scheduler = scheduler
        self._steps = steps
        self._sampling = SamplingTable(program.vocab_size)
        self._under_way: StepUnderWay | None = None

    @property
    def is_under_way(self) -> bool:
        return self._under_way is not None

    def run(self, batch: Batch) -> list[TokenOutput]:
        """Launches the batch that was planned last, and says what the one before has brought.

        A batch that is not launched is computed here, and its outputs follow.
        """
        before, ahead = self._under_way, self._launch(batch)
        outputs: list[TokenOutput] = []
        if before is not None:
            results = before.collect()
            if results is None and ahead is not None:
                ahead.collect()  # it stands on a step that failed, so its results are nothing worth
                ahead = None
            outputs += self._take_in(before.batch, results)
        if ahead is None:
            outputs += self._compute(self._scheduler.still_planned(batch))
        else:
            self._scheduler.assume(batch)
        self._under_way = ahead
        return outputs

    def close(self) -> None:
        """Ends the helpers' thread; what is under way is the program's to end."""
        self._steps.close()

    def _launch(self, batch: Batch) -> StepUnderWay | None:
        if not batch or batch.has_edits:
            return None
        try:
            forward_inputs, score_inputs = batch.forward_inputs(), batch.score_inputs()
            requests, sample_rows = batch.sampled_requests, batch.sample_rows()
            sampling_inputs = self._sampling.inputs(requests, sample_rows) if requests else None
            return StepUnderWay(batch, self._program.launch(forward_inputs, sampling_inputs, score_inputs))
        except Exception as error:
            logger.warning("a step of %d rows could not be launched: %s", len(batch.rows), error)
            return None

    def _take_in(self, batch: Batch, results: Results | None) -> list[TokenOutput]:
        if results is None:
            return self._compute(self._scheduler.retract(batch))
        return self._scheduler.settle(batch, *results)

    def _compute(self, batch: Batch) -> list[TokenOutput]:
        return self._steps.run(batch) if batch else []
