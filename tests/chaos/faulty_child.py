"""An engine that fails on purpose: requests are poisoned by the first token of their prompt.

`main` is such an engine's process. `python -m tests.chaos.faulty_child serve …` is `roseinfer serve …` with one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from roseinfer.backends import Program
from roseinfer.core.batch import NO_TOKEN, ForwardInputs, SampleOutput, SamplingInputs
from roseinfer.engine import child

HANG_VARIABLE = "CHAOS_HANG_SECONDS"  # instead of the watch's own
FIRST_TOKEN = 4  # every vocabulary has it and those that follow
LATE_POSITION = 24  # the token at which late faults happen, prompt and answer counted together
SLOW_FACTOR = 1.5  # by which a slow step takes longer than an engine may stand still
EXIT_STATUS = 3


@dataclass(frozen=True)
class Fault:
    """`action`: what the program does, `stage`: when, in the life of the request that is poisoned with it."""

    action: str  # abort | segfault | exit | spin | raise | nan | slow
    stage: str  # prefill | decode | sampling

    @property
    def token_id(self) -> int:
        return FIRST_TOKEN + FAULTS.index(self)

    @property
    def is_fatal(self) -> bool:
        """Whether the engine's process does not survive it."""
        return self.action in FATAL_ACTIONS


FATAL_ACTIONS = ("abort", "segfault", "exit", "spin")
FAULTS = (
    *(Fault(action, stage) for action in (*FATAL_ACTIONS, "raise") for stage in ("prefill", "decode", "sampling")),
    *(Fault("nan", stage) for stage in ("prefill", "decode")),
    Fault("slow", "prefill"),
)


class FaultyProgram:
    """A program around another one. A row is known by its first block, which no other live request has."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._faults: dict[int, Fault] = {}  # by the first block of a poisoned row
        self._due: dict[int, Fault] = {}  # what is to happen in sampling, by the index of the logits' row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def forward(self, inputs: ForwardInputs) -> None:
        self._due = {}
        for row in range(len(inputs.block_tables)):
            fault = self._fault_of(inputs, row)
            if fault is not None:
                self._take(fault, inputs, row)
        self._program.forward(inputs)

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        due = [self._due.get(int(row)) for row in inputs.rows]
        for fault in due:
            if fault is not None and fault.action != "nan":
                act(fault.action)
        output = self._program.sample(inputs)
        return _without_tokens(output, [index for index, fault in enumerate(due) if fault is not None])

    def _fault_of(self, inputs: ForwardInputs, row: int) -> Fault | None:
        start, block = int(inputs.row_offsets[row]), int(inputs.block_tables[row, 0])
        if inputs.positions[start] == 0:  # whoever had the block before is gone
            self._faults.pop(block, None)
            index = int(inputs.token_ids[start]) - FIRST_TOKEN
            if 0 <= index < len(FAULTS):
                self._faults[block] = FAULTS[index]
        return self._faults.get(block)

    def _take(self, fault: Fault, inputs: ForwardInputs, row: int) -> None:
        """Lets it happen, or says when it will, if now is the time."""
        start, stop = inputs.row_offsets[row : row + 2]
        is_first, is_late = inputs.positions[start] == 0, inputs.positions[stop - 1] >= LATE_POSITION
        if not (is_first if fault.stage == "prefill" else is_late):
            return
        if fault.stage == "sampling" or fault.action == "nan":
            for index in np.flatnonzero((inputs.logit_rows >= start) & (inputs.logit_rows < stop)):
                self._due[int(index)] = fault
        elif fault.action == "slow":
            self._compute_for(SLOW_FACTOR * hang_seconds(), inputs)
        else:
            act(fault.action)

    def _compute_for(self, seconds: float, inputs: ForwardInputs) -> None:
        """A step that takes its time, but gets on."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._program.forward(inputs)


def hang_seconds() -> float:
    """How long an engine may stand still."""
    return float(os.environ.get(HANG_VARIABLE, 8.0))


def act(action: str) -> None:
    if action == "abort":
        os.abort()
    if action == "segfault":
        ctypes.string_at(0)
    if action == "exit":
        os._exit(EXIT_STATUS)
    if action == "raise":
        raise RuntimeError("this request is poisoned")
    while action == "spin":
        pass


def _without_tokens(output: SampleOutput, indices: list[int]) -> SampleOutput:
    """As if the logits of these rows had not been numbers."""
    if not indices:
        return output
    token_ids, logprobs = output.token_ids.copy(), output.logprobs.copy()
    token_ids[indices], logprobs[indices] = NO_TOKEN, np.nan
    top_ids = [ids[:0] if i in indices else ids for i, ids in enumerate(output.top_ids)]
    top_logprobs = [values[:0] if i in indices else values for i, values in enumerate(output.top_logprobs)]
    return SampleOutput(token_ids, logprobs, top_ids, top_logprobs)


def main(socket_fd: int, progress_fd: int, cache_fd: int | None) -> None:
    child.main(socket_fd, progress_fd, cache_fd, FaultyProgram)


def serve() -> NoReturn:
    """The command line's arguments are those of `roseinfer`."""
    from roseinfer.__main__ import main as roseinfer
    from roseinfer.engine import process

    options = process.WatchOptions(hang_seconds=hang_seconds())
    faulty = functools.partial(process.EngineProcess, main="tests.chaos.faulty_child", options=options)
    process.EngineProcess = faulty  # type: ignore[assignment,misc]
    roseinfer()


if __name__ == "__main__":
    serve()
