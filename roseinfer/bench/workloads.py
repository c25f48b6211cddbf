"""What is asked of a server: how many requests of what length, and when. The presets stand in docs/performance.md."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from roseinfer.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Lengths are in tokens; `input_len` includes the `shared_prefix_len` tokens that all prompts begin with.

    With a `rate` the loop is open: requests come at that many per second, whether or not earlier ones are done.
    Otherwise it is closed: `concurrency` callers, each of whom asks again when it has its answer.
    """

    name: str
    num_requests: int = 1
    input_len: int = 128
    output_len: int = 128
    shared_prefix_len: int = 0
    concurrency: int = 1
    rate: float | None = None

    @property
    def is_one_stream(self) -> bool:
        """Never two requests at once, so that a request's first token waits for its own prompt only."""
        return self.num_requests == 1 or (self.rate is None and self.concurrency == 1)

    @property
    def summary(self) -> str:
        shared = f" ({self.shared_prefix_len:,} of them shared)" if self.shared_prefix_len else ""
        pace = f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} per second"
        requests = "1 request" if self.num_requests == 1 else f"{self.num_requests} requests, {pace}"
        return f"{requests}; {self.input_len:,} tokens in{shared}, {self.output_len:,} out"

    def check(self) -> None:
        """Raises ConfigError naming the flag."""
        for field in ("num_requests", "input_len", "output_len", "concurrency"):
            _check_at_least(FLAGS[field], getattr(self, field), 1)
        _check_at_least(FLAGS["shared_prefix_len"], self.shared_prefix_len, 0)
        if self.shared_prefix_len >= self.input_len:
            raise ConfigError(f"--shared-prefix-len must be below --input-len, which is {self.input_len}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ConfigError(f"--rate must be a number above 0, got {self.rate}")


FLAGS = {
    "num_requests": "--requests",
    "input_len": "--input-len",
    "output_len": "--output-len",
    "shared_prefix_len": "--shared-prefix-len",
    "concurrency": "--concurrency",
    "rate": "--rate",
}

PRESETS = {
    preset.name: preset
    for preset in (
        Workload(name="w1", input_len=128, output_len=128),
        Workload(name="w2", input_len=2000, output_len=8),
        Workload(name="w3", num_requests=64, input_len=256, output_len=64, concurrency=16),
        Workload(name="w4", num_requests=32, input_len=1032, shared_prefix_len=1000, output_len=32, concurrency=8),
        Workload(name="w5", num_requests=200, input_len=8, output_len=1, concurrency=32),
    )
}


def choose_workloads(
    names: Sequence[str],
    *,
    num_requests: int | None = None,
    input_len: int | None = None,
    output_len: int | None = None,
    shared_prefix_len: int | None = None,
    concurrency: int | None = None,
    rate: float | None = None,
) -> list[Workload]:
    """The presets named (each name may be several, `w1,w3`), with what is given in place of their own values.

    Without names: a workload of its own if anything is given, otherwise all presets. Raises ConfigError.
    """
    if rate is not None and concurrency is not None:
        raise ConfigError("--rate and --concurrency exclude each other: a rate is an open loop")
    given = {
        "num_requests": num_requests,
        "input_len": input_len,
        "output_len": output_len,
        "shared_prefix_len": shared_prefix_len,
        "concurrency": concurrency,
        "rate": rate,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    workloads = [_changed(base, changes) for base in _bases(names, has_changes=bool(changes))]
    for workload in workloads:
        workload.check()
    return workloads


def _bases(names: Sequence[str], *, has_changes: bool) -> list[Workload]:
    split = [name.strip().lower() for several in names for name in several.split(",")]
    if unknown := [name for name in split if name not in PRESETS]:
        raise ConfigError(f"--workload {unknown[0]!r} is unknown; there are {', '.join(PRESETS)}")
    if split:
        return [PRESETS[name] for name in dict.fromkeys(split)]
    return [Workload(name="custom")] if has_changes else list(PRESETS.values())


def _changed(base: Workload, changes: dict[str, int | float]) -> Workload:
    """A preset that is no longer itself gets a star to its name."""
    changed = dataclasses.replace(base, **changes)  # type: ignore[arg-type]
    if changed == base or base.name not in PRESETS:
        return changed
    return dataclasses.replace(changed, name=f"{base.name}*")


def arrival_times(workload: Workload, rng: Random) -> list[float]:
    """When the requests of an open loop are due, in seconds after the first: a Poisson process of `workload.rate`."""
    assert workload.rate is not None
    gaps = [rng.expovariate(workload.rate) for _ in range(workload.num_requests - 1)]
    return [0.0, *itertools.accumulate(gaps)]


def _check_at_least(flag: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{flag} must be at least {low}, got {value}")
