"""Steps of a compiled program on the device: decode, prefill, and what each of their operations takes."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.cuda_device import Mark, Memory, Multiplier, Product, release, seconds
from benchmarks.cuda_figures import Figure
from benchmarks.cuda_models import Sizes, attention_operations, auto_kv_dtype, make_model, num_operations
from roseinfer.backends import ProgramOptions
from roseinfer.backends.cuda import compile, kv_block_bytes
from roseinfer.backends.cuda.graphs import CudaCapture
from roseinfer.backends.cuda.inputs import StepInputs, is_decode, padded_decode
from roseinfer.backends.cuda.program import CudaProgram
from roseinfer.core.batch import ForwardInputs, Int32Array, SampleOutput, SamplingInputs
from roseinfer.models import Model

BLOCK = 16
FILL_TOKENS = 256
HEAD_START_CYCLES = 100_000_000  # about 50 ms in which the host gets ahead of the device
QUANTISED = (("q4_k", "q6_k"), ("q8_0", "q8_0"), ("q4_0", "q6_k"))  # (layers, head), as files have them


@dataclass(frozen=True)
class Bench:
    """Where and how much is measured."""

    device: torch.device
    sizes: Sizes
    rounds: int
    stack_layers: int

    def medians(self, *measurements: Callable[[], float]) -> list[float]:
        """Of rounds in which the measurements take turns, so that all of them meet the same clocks."""
        rounds = [[measure() for measure in measurements] for _ in range(self.rounds)]
        return [statistics.median(column) for column in zip(*rounds, strict=True)]

    def memory(self) -> Memory:
        return Memory(self.device, self.sizes.copy_bytes, self.sizes.repeats)

    def large_product(self) -> Multiplier:
        size = self.sizes.product
        return Multiplier(self.device, Product(f"{size}³", size, size, size), self.sizes.repeats)


@contextmanager
def compiled(model: Model, options: ProgramOptions) -> Iterator[CudaProgram]:
    release()
    program = compile(model.graph, model.weights, options)
    try:
        yield program
    finally:
        program.close()


# -- limits ---------------------------------------------------------------------------------------------------


def limits(bench: Bench) -> Iterator[Figure]:
    memory = bench.memory()
    copy_rate, read_rate = bench.medians(memory.copy_rate, memory.read_rate)
    yield Figure("memory, copied (bytes read and written)", copy_rate / 1e9, "GB/s")
    yield Figure("memory, read (a sum)", read_rate / 1e9, "GB/s")
    multipliers = [Multiplier(bench.device, product, bench.sizes.repeats) for product in stack_products(bench.sizes)]
    large = bench.large_product()
    large_rate, *times = bench.medians(large.rate, *(multiplier.seconds for multiplier in multipliers))
    yield Figure(f"product by cuBLAS, bf16, {large.product.name}", large_rate / 1e12, "TFLOP/s")
    for multiplier, time in zip(multipliers, times, strict=True):
        product = multiplier.product
        name = f"product by cuBLAS, bf16, {product.name}, {product.tokens} x {product.rows} x {product.columns}"
        yield Figure(name, product.operations / time / 1e12, "TFLOP/s", product.operations / time / large_rate)
    rate = sum(multiplier.product.operations for multiplier in multipliers) / sum(times)
    yield Figure("products of the 7B-shaped stack by cuBLAS", rate / 1e12, "TFLOP/s", rate / large_rate)


def stack_products(sizes: Sizes) -> list[Product]:
    c = sizes.stack(1)
    shapes = {
        "qkv": (c.q_width + 2 * c.kv_width, c.hidden_size),
        "attention output": (c.hidden_size, c.q_width),
        "gate and up": (2 * c.ffn_size, c.hidden_size),
        "down": (c.hidden_size, c.ffn_size),
    }
    return [Product(name, sizes.prefill_tokens, rows, columns) for name, (rows, columns) in shapes.items()]


# -- decode ---------------------------------------------------------------------------------------------------


class Decode:
    """`rows` requests, each at its token `context`, computed again and again: every step sees and costs the same."""

    def __init__(self, model: Model, rows: int, context: int, weight_dtype: str = "auto") -> None:
        self.model = model
        self.rows = rows
        self.context = context
        self.tables = np.arange(rows * -(-context // BLOCK), dtype=np.int32).reshape(rows, -1)
        self.options = ProgramOptions(
            num_blocks=self.tables.size,
            max_batch_tokens=max(rows, FILL_TOKENS),
            max_logit_rows=rows,
            kv_dtype=auto_kv_dtype(model),
            weight_dtype=weight_dtype,
        )

    @property
    def kv_bytes(self) -> int:
        return kv_block_bytes(self.model.graph.attention_specs, self.options.kv_dtype) * self.tables.size

    def num_bytes(self, program: CudaProgram) -> int:
        """What a step reads: all weights, as the head is the embedding, and all keys and values."""
        return program.memory()["weights"] + self.kv_bytes

    def inputs(self, token_ids: Int32Array) -> ForwardInputs:
        return ForwardInputs(
            token_ids=token_ids,
            positions=np.full(self.rows, self.context - 1, dtype=np.int32),
            row_offsets=np.arange(self.rows + 1, dtype=np.int32),
            block_tables=self.tables,
            logit_rows=np.arange(self.rows, dtype=np.int32),
        )

    def known_inputs(self) -> ForwardInputs:
        return self.inputs(np.arange(1, self.rows + 1, dtype=np.int32))

    def sampling(self) -> SamplingInputs:
        """Greedy."""
        zeros, ones = np.zeros(self.rows, dtype=np.int32), np.ones(self.rows, dtype=np.float32)
        return SamplingInputs(
            rows=np.arange(self.rows, dtype=np.int32),
            temperatures=0 * ones,
            top_ks=zeros,
            top_ps=ones,
            min_ps=0 * ones,
            seeds=np.zeros(self.rows, dtype=np.uint64),
            choices=zeros,
            positions=np.full(self.rows, self.context, dtype=np.int64),
            num_logprobs=zeros - 1,
        )

    def fill(self, program: CudaProgram) -> None:
        """Keys and values of all tokens before."""
        for table in self.tables:
            for start in range(0, self.context, FILL_TOKENS):
                program.forward(prompt_inputs(start, min(start + FILL_TOKENS, self.context), table))

    def launched_seconds(self, program: CudaProgram, num_steps: int) -> float:
        """Of a step as the engine runs it: it is launched before the tokens of the step before are read."""
        pending = [program.launch(self.known_inputs(), self.sampling(), None), self._launch_behind(program)]
        _check(pending.pop(0).collect()[0])
        clock = Mark(torch.device("cpu"))
        for _ in range(num_steps):
            pending.append(self._launch_behind(program))
            _check(pending.pop(0).collect()[0])
        elapsed = clock.seconds_until(Mark(torch.device("cpu")))
        pending.pop().collect()
        return elapsed / num_steps

    def _launch_behind(self, program: CudaProgram) -> Any:
        """The step that goes on with what the one before samples."""
        return program.launch(self.inputs(-1 - np.arange(self.rows, dtype=np.int32)), self.sampling(), None)

    def kernel_seconds(self, program: CudaProgram, repeats: int, device: torch.device) -> float:
        """Of a forward by the device's clock, with all inputs there."""
        with placed(program, self.known_inputs()) as step:
            replay = replayed(program, step)
            replay()
            return seconds(replay, repeats, device)


def _check(samples: SampleOutput | None) -> None:
    if samples is None or (samples.token_ids < 0).any():
        raise RuntimeError("a step brought no tokens: its logits are not finite")


def prompt_inputs(start: int, stop: int, table: Int32Array) -> ForwardInputs:
    """A part of one request's prompt; the logits of its last token are wanted."""
    positions = np.arange(start, stop, dtype=np.int32)
    return ForwardInputs(
        token_ids=positions % 32,
        positions=positions,
        row_offsets=np.array([0, stop - start], dtype=np.int32),
        block_tables=np.ascontiguousarray(table.reshape(1, -1)),
        logit_rows=np.array([stop - start - 1], dtype=np.int32),
    )


@contextmanager
def placed(program: CudaProgram, inputs: ForwardInputs) -> Iterator[StepInputs]:
    """The step's inputs on the device, which stay there until another step comes; within, the program's stream."""
    compiled_ = program._compiled
    assert compiled_ is not None
    with program._on_stream():
        if is_decode(inputs):
            inputs = padded_decode(inputs, inputs.num_tokens)
        step, has_moved = program._stage.put(inputs, compiled_.tile_sizes)
        if has_moved:
            program._graphs.clear()
        yield step


def replayed(program: CudaProgram, step: StepInputs) -> Callable[[], None]:
    """A step that has run before, without the host: a CUDA graph where there is a GPU."""
    run = partial(program._run, step)
    return CudaCapture(program._stream)(run) if program._stream else run


def decode(bench: Bench, case: Decode, name: str, target: str) -> Iterator[Figure]:
    memory = bench.memory()
    sizes = bench.sizes
    with compiled(case.model, case.options) as program:
        case.fill(program)
        case.launched_seconds(program, 2)  # captures the graph
        copy_rate, read_rate, launched, kernels = bench.medians(
            memory.copy_rate,
            memory.read_rate,
            lambda: case.launched_seconds(program, sizes.decode_steps),
            lambda: case.kernel_seconds(program, sizes.repeats, bench.device),
        )
        num_bytes = case.num_bytes(program)
    limit = num_bytes / copy_rate
    weights, keys = (num_bytes - case.kv_bytes) / 1e9, case.kv_bytes / 1e9
    note = f"{weights:.3f} GB of weights, {keys:.3f} of keys and values; {num_bytes / read_rate * 1e3:.3f} ms to read"
    yield Figure(f"{name}: limit, bytes / copy rate", limit * 1e3, "ms", note=note)
    yield Figure(f"{name}: launched step after step", launched * 1e3, "ms", limit / launched, target)
    yield Figure(f"{name}: forward's kernels alone", kernels * 1e3, "ms", limit / kernels)


def decode_one(bench: Bench) -> Iterator[Figure]:
    case = Decode(make_model(bench.sizes.decoder, "bf16"), 1, bench.sizes.short_context)
    yield from decode(bench, case, "1B bf16, 1 row", ">= 80 %")


def decode_batch(bench: Bench) -> Iterator[Figure]:
    sizes = bench.sizes
    case = Decode(make_model(sizes.decoder, "bf16"), sizes.batch, sizes.context)
    yield from decode(bench, case, f"1B bf16, {sizes.batch} rows at {sizes.context}", ">= 70 %")


def quantised(bench: Bench) -> Iterator[Figure]:
    context = bench.sizes.short_context
    for weight_format, head_format in QUANTISED:
        case = Decode(make_model(bench.sizes.quantised, weight_format, head_format), 1, context)
        yield from decode(bench, case, f"1B {weight_format}, head {head_format}, 1 row", "")
    if not has_fp8(bench.device):
        yield Figure("1B fp8, 1 row: not on this card", 0.0, "")
        return
    case = Decode(make_model(bench.sizes.quantised, "bf16"), 1, context, weight_dtype="fp8")
    yield from decode(bench, case, "1B fp8, 1 row", "")


def has_fp8(device: torch.device) -> bool:
    """Ada and Hopper have it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


# -- prefill --------------------------------------------------------------------------------------------------


class Prefill:
    """One prompt in one step, through a stack of 7B-shaped layers."""

    def __init__(self, bench: Bench) -> None:
        self.num_tokens = bench.sizes.prefill_tokens
        self.config = bench.sizes.stack(bench.stack_layers)
        self.model = make_model(self.config, "bf16")
        self.table = np.arange(-(-self.num_tokens // BLOCK), dtype=np.int32)
        self.options = ProgramOptions(
            num_blocks=self.table.size,
            max_batch_tokens=self.num_tokens,
            max_logit_rows=BLOCK,
            kv_dtype=auto_kv_dtype(self.model),
        )

    @property
    def operations(self) -> int:
        return num_operations(self.model.graph, self.num_tokens, 1)

    def inputs(self) -> ForwardInputs:
        return prompt_inputs(0, self.num_tokens, self.table)

    def seconds(self, program: CudaProgram, device: torch.device) -> float:
        with program._on_stream():
            return seconds(lambda: program.forward(self.inputs()), 1, device)


def prefill(bench: Bench) -> Iterator[Figure]:
    case = Prefill(bench)
    large = bench.large_product()
    fast_options = replace(case.options, fast=True)
    with compiled(case.model, case.options) as exact, compiled(case.model, fast_options) as fast:
        for program in (exact, fast):
            case.seconds(program, bench.device)
        rate, exact_seconds, fast_seconds = bench.medians(
            large.rate, lambda: case.seconds(exact, bench.device), lambda: case.seconds(fast, bench.device)
        )
    name = f"{case.num_tokens} tokens, {bench.stack_layers} of 32 7B-shaped layers, bf16"
    yield Figure("limit: large product by cuBLAS", rate / 1e12, "TFLOP/s")
    for kind, time, target in (("default", exact_seconds, ">= 60 %"), ("--fast", fast_seconds, "")):
        achieved = case.operations / time
        note = f"{time * 1e3:.1f} ms, {case.num_tokens / time:,.0f} tokens/s"
        yield Figure(f"{name}, {kind}", achieved / 1e12, "TFLOP/s", achieved / rate, target, note)
    yield Figure("what row independence costs, default / --fast", exact_seconds / fast_seconds, "times")


# -- operations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What an operation has to read and to multiply at the least."""

    nbytes: int = 0
    operations: int = 0


def profile(bench: Bench) -> Iterator[Figure]:
    sizes = bench.sizes
    model = make_model(sizes.decoder, "bf16")
    for rows, context in ((1, sizes.short_context), (sizes.batch, sizes.context)):
        case = Decode(model, rows, context)
        with compiled(model, case.options) as program:
            case.fill(program)
            attention = Work(case.kv_bytes // len(model.graph.attention_specs))
            name = f"decode, {rows} rows"
            yield from operation_figures(bench, program, model, case.known_inputs(), attention, rows, name)
    prompt = Prefill(bench)
    attention = Work(operations=attention_operations(prompt.config.q_width, prompt.num_tokens))
    with compiled(prompt.model, prompt.options) as program:
        name = f"prefill, {prompt.num_tokens} tokens"
        yield from operation_figures(bench, program, prompt.model, prompt.inputs(), attention, 1, name)


def operation_figures(
    bench: Bench,
    program: CudaProgram,
    model: Model,
    inputs: ForwardInputs,
    attention: Work,
    num_logits: int,
    step_name: str,
) -> Iterator[Figure]:
    """Per kind of operation: its time in a step, most first, and how much of it the hardware would need."""
    memory, large = bench.memory(), bench.large_product()
    copy_rate, product_rate = bench.medians(memory.copy_rate, large.rate)
    rounds = [operation_seconds(program, inputs, bench.device) for _ in range(bench.rounds + 1)][1:]
    times: dict[str, float] = defaultdict(float)
    floors: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for samples in zip(*rounds, strict=True):
        name = samples[0][0]
        kind = without_layer(name)
        work = attention if name == "attention" else linear_work(name, model, inputs.num_tokens, num_logits)
        counts[kind] += 1
        times[kind] += statistics.median(time for _, time in samples)
        floors[kind] += max(work.nbytes / copy_rate, work.operations / product_rate)
    total = sum(times.values())
    yield Figure(f"{step_name}: all operations", total * 1e6, "us", sum(floors.values()) / total)
    for kind, time in sorted(times.items(), key=lambda item: -item[1]):
        note = f"{time / total:6.1%} of the step, {counts[kind]} times"
        yield Figure(f"{step_name}: {kind}", time * 1e6, "us", floors[kind] / time if floors[kind] else None, note=note)


def operation_seconds(program: CudaProgram, inputs: ForwardInputs, device: torch.device) -> list[tuple[str, float]]:
    """By name, in a step's order; the device waits first, so that it finds one operation behind the other."""
    compiled_ = program._compiled
    assert compiled_ is not None
    with placed(program, inputs) as step:
        if device.type == "cuda":
            torch.cuda._sleep(HEAD_START_CYCLES)
        marks = [Mark(device)]
        for _, operation in compiled_.operations:
            operation(step)
            marks.append(Mark(device))
        times = [a.seconds_until(b) for a, b in pairwise(marks)]
    return [(name, time) for (name, _), time in zip(compiled_.operations, times, strict=True)]


def without_layer(name: str) -> str:
    return re.sub(r"blk\.[0-9]+\.", "", name)


def linear_work(name: str, model: Model, num_tokens: int, num_logits: int) -> Work:
    """Nothing for what is no linear."""
    kind, _, names = name.partition(" ")
    if kind != "linear":
        return Work()
    weights = [model.weights[f"{each}.weight"] for each in names.split()]
    rows = num_logits if names == _head_name(model) else num_tokens
    elements = sum(int(np.prod(weight.shape)) for weight in weights)
    return Work(sum(weight.data.nbytes for weight in weights), 2 * rows * elements)


def _head_name(model: Model) -> str:
    return str(model.graph.ops[-1].kind.weight).removesuffix(".weight")  # type: ignore[union-attr]
