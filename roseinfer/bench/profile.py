"""`--profile`: where a step's time goes, operation by operation, from the native program's own clock.

The engine is stepped here, without its thread, so that each step can be told apart: one that has a prompt in it, or
one that only decodes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roseinfer.bench.report import number_table
from roseinfer.bench.workloads import Workload
from roseinfer.core.config import Config
from roseinfer.core.errors import ConfigError
from roseinfer.core.messages import AddRequest
from roseinfer.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from roseinfer.engine.engine import Engine


@dataclass
class Phase:
    """Steps of one kind, added up."""

    name: str
    num_steps: int = 0
    seconds: float = 0.0  # the steps as a whole, scheduling and sampling included
    calls: dict[str, int] = field(default_factory=dict)  # by operation, in program order
    op_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, profile: Iterable[tuple[str, int, float]]) -> None:
        self.num_steps += 1
        self.seconds += seconds
        for name, num_calls, op_seconds in profile:
            self.calls[name] = self.calls.get(name, 0) + num_calls
            self.op_seconds[name] = self.op_seconds.get(name, 0.0) + op_seconds

    @property
    def rest_seconds(self) -> float:
        return self.seconds - sum(self.op_seconds.values())


def print_profile(config: Config, workloads: Sequence[Workload], *, seed: int) -> None:
    """Tables for each workload. Raises RoseinferError."""
    console = Console(highlight=False)
    engine, program = _load(config)
    try:
        for workload in workloads:
            console.print(f"\n[bold]{workload.name}[/]  {_summary(workload)}")
            for phase in profile_workload(engine, program, workload, Random(f"{seed} {workload.name}")):
                console.print(_title(phase), phase_table(phase))
    finally:
        engine.close()


def profile_workload(engine: Engine, program: Any, workload: Workload, rng: Random) -> list[Phase]:
    """One batch of the workload: as many requests as it has at once, all added before the first step."""
    _profile_steps(engine, program, _requests(engine, workload, 1, rng))  # warms up
    requests = _requests(engine, workload, _num_at_once(workload), rng)
    return [phase for phase in _profile_steps(engine, program, requests) if phase.num_steps]


def _profile_steps(engine: Engine, program: Any, requests: Sequence[AddRequest]) -> list[Phase]:
    prefill, decode = Phase("steps with a prompt"), Phase("decode steps")
    has_begun: set[str] = set()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        phase = decode if len(has_begun) == len(requests) else prefill
        program.start_profile()
        start = perf_counter()
        outputs = engine.step().outputs
        phase.add(perf_counter() - start, program.profile())
        if failed := next((output.error for output in outputs if output.error), None):
            raise ConfigError(f"--profile: {failed}")
        has_begun |= {output.request_id for output in outputs}
    return [prefill, decode]


def phase_table(phase: Phase) -> Table:
    table = number_table("", "calls", "ms per step", "share")
    for name, seconds in phase.op_seconds.items():
        table.add_row(escape(name), f"{phase.calls[name]:,}", *_cells(phase, seconds))
    table.add_row("outside the operations", "", *_cells(phase, phase.rest_seconds))
    return table


def _cells(phase: Phase, seconds: float) -> tuple[str, str]:
    return f"{1e3 * seconds / phase.num_steps:.3f}", f"{100 * seconds / phase.seconds:.1f} %"


def _title(phase: Phase) -> str:
    return f"\n{phase.name}: {phase.num_steps:,}, {1e3 * phase.seconds / phase.num_steps:.3f} ms each"


def _summary(workload: Workload) -> str:
    return f"{_num_at_once(workload)} at once; {workload.input_len:,} tokens in, {workload.output_len:,} out"


def _num_at_once(workload: Workload) -> int:
    return min(workload.concurrency, workload.num_requests)


def _requests(engine: Engine, workload: Workload, num_requests: int, rng: Random) -> list[AddRequest]:
    """As a client would make them; this one is never started, since the engine is stepped here."""
    from roseinfer.engine.client import EngineClient

    client = EngineClient(engine)
    params = SamplingParams(max_tokens=workload.output_len, temperature=0.0, ignore_eos=True)
    vocabulary = range(engine.vocab_size)
    shared = rng.choices(vocabulary, k=workload.shared_prefix_len)
    own_len = workload.input_len - workload.shared_prefix_len
    prompts = ([*shared, *rng.choices(vocabulary, k=own_len)] for _ in range(num_requests))
    return [client.make_request(prompt, params) for prompt in prompts]


def _load(config: Config) -> tuple[Engine, Any]:
    """The engine, and its program for the profiler that only the native one has."""
    from roseinfer.catalog import resolve_model
    from roseinfer.checkpoints import open_checkpoint
    from roseinfer.engine.loader import build_engine

    names = inspect.signature(build_engine).parameters.keys()
    settings: dict[str, Any] = {name: getattr(config, name) for name in names if hasattr(config, name)}
    with open_checkpoint(resolve_model(config.model, config.models_dir)) as checkpoint:
        engine, _ = build_engine(checkpoint, num_threads=config.threads, **settings)
    program: Any = engine._program
    if not hasattr(program, "start_profile"):
        engine.close()
        raise ConfigError("--profile: the program of this device keeps no profile")
    return engine, program
