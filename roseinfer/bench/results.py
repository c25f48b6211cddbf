"""What was measured, as a whole: for the report, and as JSON."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import roseinfer
from roseinfer.bench.metrics import (
    FORMULAS,
    RequestTiming,
    Run,
    Spread,
    figures_of,
    ratios_of,
    spreads_of,
)
from roseinfer.bench.workloads import Workload
from roseinfer.core.machine import usable_cores


@dataclass
class WorkloadResult:
    """The repeats of a workload on each target; those with the same index ran next to each other."""

    workload: Workload
    runs: dict[str, list[Run]] = field(default_factory=dict)  # by the target's label

    def add(self, label: str, run: Run) -> None:
        self.runs.setdefault(label, []).append(run)

    def figures(self, label: str) -> list[dict[str, float | None]]:
        return [figures_of(run, self.workload) for run in self.runs[label]]

    def spreads(self, label: str) -> dict[str, Spread]:
        return spreads_of(self.figures(label))

    def ratios(self, label: str) -> dict[str, Spread]:
        """Of the first target to this one."""
        return ratios_of(self.figures(next(iter(self.runs))), self.figures(label))

    def errors(self, label: str) -> list[str]:
        return [error for run in self.runs[label] for error in run.errors]

    def total_failure(self) -> str | None:
        """The first error of a target that completed nothing."""
        for label, runs in self.runs.items():
            if not any(run.complete for run in runs):
                return f"{self.workload.name}: every request to {label} failed: {self.errors(label)[0]}"
        return None


def as_json(
    results: Sequence[WorkloadResult], targets: Mapping[str, dict[str, Any]], *, seed: int, repeats: int
) -> dict[str, Any]:
    """Everything: settings, figures of each repeat with their medians, and each request's times.

    Times are in seconds after the first request of their repeat was sent, latencies in milliseconds.
    """
    return {
        "roseinfer": roseinfer.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "cores": usable_cores(), "load": os.getloadavg()[0]},
        "seed": seed,
        "repeats": repeats,
        "formulas": FORMULAS,
        "targets": targets,
        "workloads": [_workload_json(result) for result in results],
    }


def _workload_json(result: WorkloadResult) -> dict[str, Any]:
    first, *others = result.runs
    return {
        **dataclasses.asdict(result.workload),
        "targets": {label: _target_json(result, label) for label in result.runs},
        "ratios": {f"{first}/{label}": _spreads_json(result.ratios(label)) for label in others},
    }


def _target_json(result: WorkloadResult, label: str) -> dict[str, Any]:
    figures = result.figures(label)
    return {
        "summary": _spreads_json(spreads_of(figures)),
        "repeats": [
            {"figures": of_run, "requests": _requests_json(run)}
            for of_run, run in zip(figures, result.runs[label], strict=True)
        ],
    }


def _spreads_json(spreads: Mapping[str, Spread]) -> dict[str, Any]:
    return {name: dataclasses.asdict(spread) for name, spread in spreads.items()}


def _requests_json(run: Run) -> list[dict[str, Any]]:
    zero = min(request.start for request in run.requests)
    return [_request_json(request, zero) for request in run.requests]


def _request_json(request: RequestTiming, zero: float) -> dict[str, Any]:
    return {
        "start": round(request.start - zero, 6),
        "end": round(request.end - zero, 6),
        "chunk_times": [round(time - zero, 6) for time in request.chunk_times],
        "ttft_ms": request.ttft * 1e3,
        "tpot_ms": None if request.tpot is None else request.tpot * 1e3,
        "e2e_ms": request.e2e * 1e3,
        "input_tokens": request.num_input_tokens,
        "output_tokens": request.num_output_tokens,
        "cached_tokens": request.num_cached_tokens,
        "output_counted_by": request.counted_by,
        "error": request.error,
    }
