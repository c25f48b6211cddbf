"""The running program: one call per step, without the GIL."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Any

from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs, ScoreInputs

EXIT_TIMEOUT = 10.0  # seconds that the interpreter's exit waits for a step; a forked child would wait for ever


class NativeProgram:
    """`roseinfer.backends.Program` over the compiled C++ object."""

    def __init__(self, native: Any, vocab_size: int, weight_bytes: int, isa: str) -> None:
        self.vocab_size = vocab_size
        self.isa = isa
        self._native = native
        self._weight_bytes = weight_bytes
        self._in_kernels = threading.Lock()
        _programs.add(self)

    def forward(self, inputs: ForwardInputs) -> None:
        with self._in_kernels:
            self._native.forward(
                inputs.token_ids, inputs.positions, inputs.row_offsets, inputs.block_tables, inputs.logit_rows
            )

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        with self._in_kernels:
            return SampleOutput(
                *self._native.sample(
                    inputs.rows,
                    inputs.temperatures,
                    inputs.top_ks,
                    inputs.top_ps,
                    inputs.min_ps,
                    inputs.seeds,
                    inputs.choices,
                    inputs.positions,
                    inputs.num_logprobs,
                    inputs.edits,
                )
            )

    def score(self, inputs: ScoreInputs) -> SampleOutput:
        with self._in_kernels:
            return SampleOutput(*self._native.score(inputs.rows, inputs.token_ids, inputs.num_logprobs))

    def logits(self) -> Float32Array:
        logits: Float32Array = self._native.logits()
        return logits

    def memory(self) -> dict[str, int]:
        """Bytes: the weights as packed; the most that the KV cache and the activations can come to."""
        native = self._native
        return {"weights": self._weight_bytes, "kv_cache": native.kv_bytes, "activations": native.arena_bytes}

    def start_profile(self) -> None:
        """From now on every operation is timed, until `profile` is called."""
        self._native.start_profile()

    def profile(self) -> list[tuple[str, int, float]]:
        """(operation, calls, seconds) since `start_profile`, equal names added up, in the program's order."""
        totals: dict[str, tuple[int, float]] = {}
        for name, calls, seconds in self._native.profile():
            before = totals.get(name, (0, 0.0))
            totals[name] = (before[0] + calls, before[1] + seconds)
        return [(name, calls, seconds) for name, (calls, seconds) in totals.items()]

    def close(self) -> None:
        self._native = None

    def stop_for_exit(self) -> None:
        """Waits for the call that runs and lets no other one begin."""
        self._in_kernels.acquire(timeout=EXIT_TIMEOUT)


_programs: weakref.WeakSet[NativeProgram] = weakref.WeakSet()


@atexit.register
def _stop_programs() -> None:
    """A daemon thread that comes back from C++ to an interpreter that is gone would abort the process."""
    for program in list(_programs):
        program.stop_for_exit()
