"""Many requests at once, through the engine and through transformers' continuous batching, on one card by turns.

Both get the same lengths, greedy, end of sequence ignored, prompts of random tokens, distinct in every run; the clock
runs from the first request given to the last token received, in this process, without a server.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.cuda_device import Mark
from benchmarks.cuda_figures import Figure
from benchmarks.cuda_models import Sizes, auto_kv_dtype, make_model
from benchmarks.cuda_steps import BLOCK, Bench, compiled
from roseinfer.backends import ProgramOptions
from roseinfer.backends.cuda.program import CudaProgram
from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.messages import AddRequest
from roseinfer.engine.engine import Engine
from roseinfer.scheduler.scheduler import Scheduler

MAX_GAP = 20e-6  # seconds in which a device that waits for nobody goes on with the next step
WARM_UPS = 3  # a step is captured when it comes the second time
THEIR_MEMORY = 0.5  # of what is free, for the KV cache that they take at once

Prompts = list[list[int]]
Interval = tuple[float, float]


class PromptSource:
    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._random = np.random.default_rng(0)

    def draw(self) -> Prompts:
        shape = (self._sizes.requests, self._sizes.prompt_len)
        prompts: Prompts = self._random.integers(0, self._sizes.gpt2.vocab_size, shape).tolist()
        return prompts


# -- ours -----------------------------------------------------------------------------------------------------


@contextmanager
def running_engine(sizes: Sizes) -> Iterator[tuple[Engine, CudaProgram]]:
    model = make_model(sizes.gpt2, "f16")
    num_blocks = sizes.running * -(-(sizes.prompt_len + sizes.output_len) // BLOCK)
    options = ProgramOptions(num_blocks, sizes.batch_tokens, sizes.running, kv_dtype=auto_kv_dtype(model))
    with compiled(model, options) as program:
        program.reserve(num_blocks)
        pool = BlockPool(num_blocks, BLOCK, reserve=program.reserve)
        scheduler = Scheduler(
            block_pool=pool,
            prefix_cache=PrefixCache(pool),
            max_batch_tokens=sizes.batch_tokens,
            max_running=sizes.running,
            max_model_len=model.max_model_len,
            max_logit_rows=options.max_logit_rows,
        )
        yield Engine(program, scheduler), program


class EngineRun:
    """Gives the engine all prompts at once, and steps until they are answered."""

    def __init__(self, engine: Engine, output_len: int) -> None:
        self._engine = engine
        self._output_len = output_len
        self._numbers = itertools.count()

    def seconds(self, prompts: Prompts) -> float:
        requests = [self._request(prompt) for prompt in prompts]
        num_tokens = 0
        start = time.perf_counter()
        for request in requests:
            self._engine.add(request)
        while self._engine.has_work:
            for output in self._engine.step().outputs:
                if output.error is not None:
                    raise RuntimeError(f"request {output.request_id}: {output.error}")
                num_tokens += len(output.token_ids)
        elapsed = time.perf_counter() - start
        _check_count(num_tokens, len(prompts) * self._output_len)
        return elapsed

    def _request(self, prompt: list[int]) -> AddRequest:
        return AddRequest(
            request_id=f"offline-{next(self._numbers)}",
            prompt_ids=prompt,
            max_tokens=self._output_len,
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            seed=0,
            choice=0,
            stop_token_ids=[],
            num_logprobs=-1,
        )


def _check_count(found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} tokens came, {wanted} were asked for")


# -- waiting --------------------------------------------------------------------------------------------------


@dataclass
class StepMarks:
    """A step begins behind the copy of its inputs, and ends with its sampling.

    `is_ahead`: all of its forward was in the queue before the step before had ended, so the device cannot have waited.
    """

    begin: Mark
    end: Mark
    is_ahead: bool = False


class Watch:
    """Marks where the steps of a program begin and end on the device, within `watching`."""

    def __init__(self, program: Any, make_mark: Callable[[], Mark]) -> None:
        self.steps: list[StepMarks] = []
        self._make_mark = make_mark
        self._is_on = False
        program._stage = _MarkedStage(program._stage, self)
        program._forward = self._followed(program._forward, self._forwarded)
        program._sample = self._followed(program._sample, self._end)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.steps.clear()
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def begin(self) -> None:
        if self._is_on:
            mark = self._make_mark()
            self.steps.append(StepMarks(mark, mark))

    def _followed(self, call: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
        def followed(*args: Any) -> Any:
            result = call(*args)
            if self._is_on and self.steps:
                then()
            return result

        return followed

    def _forwarded(self) -> None:
        self._end()
        if len(self.steps) > 1:
            self.steps[-1].is_ahead = not self.steps[-2].end.is_passed

    def _end(self) -> None:
        """The last call of a step says where it ends."""
        self.steps[-1].end = self._make_mark()

    def gaps(self) -> list[float]:
        """Seconds between the end of a step and the begin of the next one."""
        return [before.end.seconds_until(after.begin) for before, after in pairwise(self.steps)]


class _MarkedStage:
    def __init__(self, stage: Any, watch: Watch) -> None:
        self._stage = stage
        self._watch = watch

    def put(self, *args: Any) -> Any:
        placed = self._stage.put(*args)
        self._watch.begin()
        return placed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


def share_without_waiting(gaps: Sequence[float], max_gap: float = MAX_GAP) -> float:
    return sum(gap <= max_gap for gap in gaps) / max(len(gaps), 1)


def busy_intervals(intervals: Sequence[Interval]) -> list[Interval]:
    """Their union, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def profiled_intervals(run: Callable[[], object]) -> list[Interval]:
    """When the device worked, in seconds, as its own profiler says."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    device_type = torch.autograd.DeviceType.CUDA
    ranges = [event.time_range for event in profiler.events() or [] if event.device_type == device_type]
    return busy_intervals([(each.start / 1e6, each.end / 1e6) for each in ranges])


def waiting_figures(bench: Bench, run: EngineRun, watch: Watch, prompts: PromptSource) -> Iterator[Figure]:
    with watch.watching():
        run.seconds(prompts.draw())
    gaps = watch.gaps()
    median, most = float(np.median(gaps)) * 1e6, max(gaps) * 1e6
    note = f"{len(gaps) + 1} steps; {median:.1f} us at the median, {most:.0f} at the most"
    name = f"steps that begin within {MAX_GAP * 1e6:.0f} us of the last one's end"
    yield Figure(name, share_without_waiting(gaps) * 100, "%", target=">= 90 %", note=note)
    share_ahead = sum(step.is_ahead for step in watch.steps[1:]) / max(len(gaps), 1)
    yield Figure("steps whose whole forward was queued before the last one's end", share_ahead * 100, "%")
    if bench.device.type != "cuda":
        return
    busy = profiled_intervals(lambda: run.seconds(prompts.draw()))
    if len(busy) < 2:
        yield Figure("device's profiler: saw nothing", 0.0, "")
        return
    pauses = [after[0] - before[1] for before, after in pairwise(busy)]
    num_pauses = sum(pause > MAX_GAP for pause in pauses)
    span = busy[-1][1] - busy[0][0]
    yield Figure("profile: time in which the device has nothing to do", sum(pauses) / span * 100, "%")
    yield Figure(f"profile: pauses above {MAX_GAP * 1e6:.0f} us per step", num_pauses / (len(gaps) + 1), "")


# -- theirs ---------------------------------------------------------------------------------------------------


class TheirRun:
    """GPT2LMHeadModel of transformers with its continuous batching, whose manager is kept between runs."""

    def __init__(self, bench: Bench) -> None:
        import transformers

        sizes, config = bench.sizes, bench.sizes.gpt2
        transformers.logging.set_verbosity_error()
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        settings = transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_positions,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            bos_token_id=0,
            eos_token_id=0,
        )
        settings._attn_implementation = "sdpa"
        torch.manual_seed(0)
        is_cuda = bench.device.type == "cuda"
        dtype = torch.float16 if is_cuda else torch.float32
        self._model = transformers.GPT2LMHeadModel(settings).to(bench.device, dtype).eval()
        self._generation = transformers.GenerationConfig(
            max_new_tokens=sizes.output_len, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        fixed = {} if is_cuda else {"num_blocks": 64, "max_batch_tokens": sizes.batch_tokens}
        self._batching = transformers.ContinuousBatchingConfig(max_memory_percent=THEIR_MEMORY, **fixed)
        self._output_len = sizes.output_len
        self.name = f"transformers {transformers.__version__}"

    @property
    def attention(self) -> str:
        manager = self._model._cached_continuous_batching_manager
        manager.switch_to_cb_friendly_attn(self._model, self._batching.auto_switch_to_flash)
        return str(self._model.config._attn_implementation)

    def seconds(self, prompts: Prompts) -> float:
        start = time.perf_counter()
        results = self._model.generate_batch(
            prompts,
            generation_config=self._generation,
            continuous_batching_config=self._batching,
            record_timestamps=True,
            persistent_manager=True,
        ).values()
        for result in results:
            if result.error is not None:
                raise RuntimeError(f"transformers: {result.error}")
        _check_count(sum(len(result.generated_tokens) for result in results), len(prompts) * self._output_len)
        return float(max(result.timestamps[-1] for result in results) - start)

    def close(self) -> None:
        self._model.destroy_cached_continuous_batching_manager()


# -- both -----------------------------------------------------------------------------------------------------


def offline(bench: Bench) -> Iterator[Figure]:
    sizes = bench.sizes
    prompts = PromptSource(sizes)
    num_tokens = sizes.requests * sizes.output_len
    what = f"GPT-2 124M fp16, {sizes.requests} x ({sizes.prompt_len} in / {sizes.output_len} out)"
    with running_engine(sizes) as (engine, program):
        run = EngineRun(engine, sizes.output_len)
        watch = Watch(program, lambda: Mark(bench.device))
        for _ in range(WARM_UPS):
            run.seconds(prompts.draw())
        (alone,) = bench.medians(lambda: run.seconds(prompts.draw()))
        yield Figure(f"{what}: the engine alone", num_tokens / alone, "tokens/s", note=f"{alone:.3f} s")
        yield from waiting_figures(bench, run, watch, prompts)
        theirs = TheirRun(bench)
        theirs.seconds(prompts.draw())
        ours_seconds, their_seconds = bench.medians(
            lambda: run.seconds(prompts.draw()), lambda: theirs.seconds(prompts.draw())
        )
        note = f"attention: {theirs.attention}"
        theirs.close()
    yield Figure("by turns: the engine", num_tokens / ours_seconds, "tokens/s")
    yield Figure(f"by turns: {theirs.name}, continuous batching", num_tokens / their_seconds, "tokens/s", note=note)
    yield Figure("the engine / transformers", their_seconds / ours_seconds, "times", target=">= 3")
