"""The fake program as one that steps are launched on, and engines over it.

Steps are computed in the order of their launches: each at once or, if the device `is_lazy`, when it is collected. What
a lazy one reads and writes in the KV memory, it reads and writes after the host went on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from roseinfer.core.batch import ForwardInputs, Int32Array, SampleOutput, SamplingInputs, ScoreInputs
from roseinfer.engine.engine import Engine
from roseinfer.scheduler.scheduler import Scheduler
from tests.fake_grammars import FakeCompiler
from tests.fake_program import FakeProgram, mix


class BrokenContract(BaseException):
    """No Exception, since the engine recovers from those."""


@contextmanager
def contract() -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise BrokenContract(*error.args) from error


Results = tuple[SampleOutput | None, SampleOutput | None]


class FakeLaunched:
    def __init__(
        self,
        program: FakeLookaheadProgram,
        forward: ForwardInputs,
        sampling: SamplingInputs | None,
        score: ScoreInputs | None,
    ) -> None:
        self.forward, self.sampling, self.score = forward, sampling, score
        self.before = program.under_way[-1] if program.under_way else None
        self.sampled_ids: Int32Array | None = None  # what the next launch may refer to; None while not computed
        self.error: Exception | None = None
        self.results: Results = (None, None)
        self._program = program

    def collect(self) -> Results:
        self._program.collected.append(self)
        with contract():
            assert self._program.under_way.pop(0) is self, "not collected in the order of the launches"
        self._program.finish(self)
        if self.error is not None:
            raise self.error
        return self.results

    def resolved(self) -> ForwardInputs:
        """With the tokens that the host did not know, or any where they have gone wrong."""
        token_ids = self.forward.token_ids.copy()
        unknown = token_ids < 0
        if unknown.any():
            assert self.before is not None
            assert self.before.sampled_ids is not None
            token_ids[unknown] = np.maximum(self.before.sampled_ids[-1 - token_ids[unknown]], 0)
        return replace(self.forward, token_ids=token_ids)


class FakeLookaheadProgram(FakeProgram):
    """Implements `LookaheadProgram`.

    What goes wrong on the device is known when the step is collected or, if the program `raises_early` and is not
    lazy, when it is launched. `fail_next` is "launch" or "device", where the next fault is to be. A faulty step leaves
    rubbish where its rows were to write.
    """

    def __init__(self, *, is_lazy: bool = False, raises_early: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.is_lazy = is_lazy
        self.raises_early = raises_early
        self.fail_next = ""
        self.launched: list[FakeLaunched] = []
        self.collected: list[FakeLaunched] = []
        self.under_way: list[FakeLaunched] = []

    def launch(
        self, forward: ForwardInputs, sampling: SamplingInputs | None, score: ScoreInputs | None
    ) -> FakeLaunched:
        launched = FakeLaunched(self, forward, sampling, score)
        with contract():
            self._check_launch(launched)
        self._fail("launch")
        if not self.is_lazy:
            self._compute(launched)
        if launched.error is not None and self.raises_early:
            raise launched.error
        self.launched.append(launched)
        self.under_way.append(launched)
        return launched

    def finish(self, launched: FakeLaunched) -> None:
        if self.is_lazy:
            self._compute(launched)

    def forward(self, inputs: ForwardInputs) -> None:
        with contract():
            assert not self.under_way, "a step is under way"
        super().forward(inputs)

    # -- the device -----------------------------------------------------------------------------------------

    def _compute(self, launched: FakeLaunched) -> None:
        try:
            FakeProgram.forward(self, launched.resolved())
            self._fail("device")
            samples = self.sample(launched.sampling) if launched.sampling else None
            launched.results = samples, self.score(launched.score) if launched.score else None
            launched.sampled_ids = samples.token_ids if samples else np.empty(0, np.int32)
        except Exception as error:
            self._spoil(launched)
            launched.error = error

    def _fail(self, place: str) -> None:
        if self.fail_next == place:
            self.fail_next = ""
            raise RuntimeError(f"{place} fault")

    def _spoil(self, launched: FakeLaunched) -> None:
        num_samples = len(launched.sampling.rows) if launched.sampling else 0
        launched.sampled_ids = np.zeros(num_samples, np.int32)
        for row, table in enumerate(launched.forward.block_tables):
            start, stop = launched.forward.row_offsets[row : row + 2]
            positions = launched.forward.positions[start:stop]
            slots = self._slots(table, positions[-1] + 1)[positions]
            self._kv[slots] = mix(slots.astype(np.uint64) + np.uint64(self.num_steps))

    # -- the contract ---------------------------------------------------------------------------------------

    def check(self, inputs: ForwardInputs) -> None:
        with contract():
            super().check(inputs)

    def check_sampling(self, inputs: SamplingInputs) -> None:
        with contract():
            super().check_sampling(inputs)

    def check_scoring(self, inputs: ScoreInputs) -> None:
        with contract():
            super().check_scoring(inputs)

    def _check_launch(self, launched: FakeLaunched) -> None:
        """What can be said before it is computed."""
        assert len(self.under_way) < 2, "a third step is launched"
        token_ids, before = launched.forward.token_ids, launched.before
        self.check(replace(launched.forward, token_ids=np.maximum(token_ids, 0)))
        num_known = len(before.sampling.rows) if before and before.sampling else 0
        assert token_ids.min() >= -num_known, "a token that nobody sampled"
        assert launched.sampling is None or launched.sampling.edits is None
        num_logits = sum(len(inputs.rows) for inputs in (launched.sampling, launched.score) if inputs)
        assert num_logits == len(launched.forward.logit_rows)


def make_lookahead_engine(scheduler: Scheduler, grammars: FakeCompiler | None = None, **options: Any) -> Engine:
    program = FakeLookaheadProgram(
        num_blocks=scheduler.block_pool.num_blocks,
        block_size=scheduler.block_pool.block_size,
        max_batch_tokens=scheduler.max_batch_tokens,
        max_logit_rows=scheduler.max_logit_rows,
        **options,
    )
    return Engine(program, scheduler, grammars or FakeCompiler())  # type: ignore[arg-type]
