"""The command: from options to targets, runs and a report."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from roseinfer.bench.discovery import connect
from roseinfer.bench.http_client import BadResponseError
from roseinfer.bench.load import run_workload
from roseinfer.bench.metrics import Run
from roseinfer.bench.processes import server_process
from roseinfer.bench.report import Report
from roseinfer.bench.results import WorkloadResult, as_json
from roseinfer.bench.targets import EngineTarget, Target
from roseinfer.bench.workloads import Workload
from roseinfer.core.config import Config
from roseinfer.core.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from roseinfer.text import Tokenizer

LABELS = "ABCDEFGH"


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """`has_model`: the configuration's model is to be measured; otherwise only what is behind the `urls`."""

    workloads: list[Workload]
    has_model: bool = True
    urls: list[str] = field(default_factory=list)
    repeats: int = 3
    seed: int = 0
    json_file: Path | None = None
    with_http: bool = True
    profile: bool = False

    def check(self) -> None:
        """Raises ConfigError naming the flag, before anything takes time."""
        if self.repeats < 1:
            raise ConfigError(f"--repeats must be at least 1, got {self.repeats}")
        if not self.has_model and (self.profile or not self.with_http):
            flag = "--profile" if self.profile else "--no-http"
            raise ConfigError(f"{flag} looks into a model of this process, so it needs a MODEL")
        if self.profile and (self.urls or self.json_file):
            raise ConfigError(f"--profile takes no {'--url' if self.urls else '--json'}")
        if len(self.urls) + self.has_model > len(LABELS):
            raise ConfigError(f"there can be {len(LABELS)} targets, got {len(self.urls) + self.has_model}")
        if self.json_file is not None:
            _check_writable(self.json_file)


def run_bench(config: Config, options: BenchOptions) -> None:
    """Measures, prints tables, and writes `json_file`. Raises RoseinferError; EngineError if nothing succeeded."""
    options.check()
    if options.profile:
        from roseinfer.bench.profile import print_profile

        print_profile(config, options.workloads, seed=options.seed)
        return
    asyncio.run(_run(config, options))


async def _run(config: Config, options: BenchOptions) -> None:
    async with AsyncExitStack() as stack:
        targets = dict(zip(LABELS, await _open_targets(config, options, stack), strict=False))
        facts = {label: target.facts() for label, target in targets.items()}
        report = Report(facts)
        report.print_targets()
        results = []
        for workload in options.workloads:
            results.append(await _measure(workload, targets, options))
            report.print_workload(results[-1])
        report.print_formulas()
    if options.json_file is not None:
        document = as_json(results, facts, seed=options.seed, repeats=options.repeats)
        options.json_file.write_text(json.dumps(document), encoding="utf-8")
    if failure := next(filter(None, (result.total_failure() for result in results)), None):
        raise EngineError(failure)


async def _open_targets(config: Config, options: BenchOptions, stack: AsyncExitStack) -> list[Target]:
    """The model first, then the URLs in the order they were given in."""
    tokenizer = _load_tokenizer(config, options.has_model) if options.with_http or options.urls else None
    targets: list[Target] = []
    if options.has_model and options.with_http:
        targets.append(await _open_server(config, tokenizer, stack))
    elif options.has_model:
        targets.append(_open_engine(config, stack))
    for url in options.urls:
        target = await connect(url, api_key=config.api_key, tokenizer=tokenizer)
        stack.callback(target.close)
        targets.append(target)
    return targets


async def _open_server(config: Config, tokenizer: Tokenizer | None, stack: AsyncExitStack) -> Target:
    process = stack.enter_context(server_process(config))
    facts = {"model": config.model, "ready after s": process.ready_seconds}
    target = await connect(process.url, tokenizer=tokenizer, facts=facts, pid=process.pid)
    stack.callback(target.close)
    return target


def _open_engine(config: Config, stack: AsyncExitStack) -> Target:
    from roseinfer.inference_engine import InferenceEngine

    return EngineTarget(stack.enter_context(InferenceEngine.from_config(config, _say)))


def _load_tokenizer(config: Config, has_model: bool) -> Tokenizer | None:
    """The one that is named, or the model's; fetches the model, so that the server finds it."""
    from roseinfer.catalog import resolve_model, resolve_tokenizer
    from roseinfer.checkpoints import open_checkpoint
    from roseinfer.text import load_tokenizer

    model = resolve_model(config.model, config.models_dir, _say) if has_model else None
    if config.tokenizer is not None:
        return load_tokenizer(resolve_tokenizer(config.tokenizer, config.models_dir, _say))
    if model is None:
        return None
    with open_checkpoint(model) as checkpoint:
        return load_tokenizer(checkpoint)


async def _measure(workload: Workload, targets: Mapping[str, Target], options: BenchOptions) -> WorkloadResult:
    """A warm-up request each, then the repeats, interleaved: A B A B."""
    result = WorkloadResult(workload)
    warm_up = dataclasses.replace(workload, num_requests=1, rate=None)
    for label, target in targets.items():
        await _run_once(label, target, warm_up, "warm-up", options.seed)
    for repeat in range(options.repeats):
        for label, target in targets.items():
            run = await _run_once(label, target, workload, f"repeat {repeat + 1} of {options.repeats}", options.seed)
            result.add(label, run)
    return result


async def _run_once(label: str, target: Target, workload: Workload, which: str, seed: int) -> Run:
    """Raises EngineError if the server is gone before anything is sent."""
    _say(f"{workload.name}: {which} on {label}")
    # No target gets another's prompts: two URLs may lead to one server and its prefix cache.
    rng = Random(f"{seed} {workload.name} {label} {which}")
    try:
        prompts = await target.prompts.make(workload, rng)
        return await run_workload(target, workload, prompts, rng)
    except (OSError, BadResponseError) as error:
        raise EngineError(f"{workload.name}, {which} on {label}: {error}") from None


def _check_writable(file: Path) -> None:
    """Told now rather than when all is measured."""
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"--json {file} cannot be written")


def _say(line: str) -> None:
    """Progress, for people only."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
