"""On a GPU: the same answers as everybody else's, to the bit whatever else is computed, graphs, memory, and the server.

What the interpreter can show is tested in the other files, on small steps of one tile shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
import torch
import triton

from roseinfer.backends import ProgramOptions, compile_program
from roseinfer.backends.cuda import kv_block_bytes, memory
from roseinfer.backends.cuda import program as program_module
from roseinfer.backends.cuda.graphs import DecodeGraphs
from roseinfer.backends.cuda.program import CudaProgram
from roseinfer.cache.block_pool import BlockPool
from roseinfer.checkpoints import open_checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import SampleOutput, SamplingInputs
from roseinfer.core.errors import ConfigError, EngineError
from roseinfer.engine import InferenceEngine
from roseinfer.engine.engine import Engine
from roseinfer.graph import Graph
from roseinfer.models import Model, load_model
from tests import tiny_models
from tests.backends.cuda.shapes import SHAPES, Shape, make_random
from tests.chaos.model_file import write_tiny_model
from tests.cli.processes import ServerProcess
from tests.equality import MAX_RUNNING, SPLIT, WISHES, WORKLOAD, Schedule, Subject, run_as_they_come
from tests.fake_engine import make_request
from tests.full_engine import FullTranscript
from tests.harness import (
    Driver,
    Row,
    compile_model,
    log_softmax,
    teacher_forced_logits,
    teacher_forced_logits_batched,
    with_options,
)
from tests.tiny_models import WIDE, GGUFRecipe, TinyModel, build_gguf
from tests.variants import BLOCK_SIZE, Variant

pytestmark = pytest.mark.cuda

RANDOM = np.random.default_rng(11)
TINY_IDS = RANDOM.integers(0, tiny_models.VOCAB_SIZE, 300).tolist()  # two splits
TINY_OPTIONS = with_options(num_blocks=192, max_batch_tokens=2048, max_logit_rows=2048)


# -- every architecture against transformers ------------------------------------------------------------------------


def logprobs(tiny: TinyModel, dtype: str) -> np.ndarray:
    """[T, vocab] of the tokens above, in chunks and one by one."""
    options = with_options(dtype=dtype, kv_dtype=dtype)
    program = compile_model("cuda", load_model(open_checkpoint(tiny.path)), options)
    logits = teacher_forced_logits(program, TINY_IDS, [200, 1, 30, 1, 1], options)
    program.close()
    return log_softmax(logits)


def rounded_reference(tiny: TinyModel) -> np.ndarray:
    """Logprobs by the reference in bfloat16."""
    module = copy.deepcopy(tiny.module).to(torch.bfloat16)
    with torch.inference_mode():
        output = module(torch.tensor([TINY_IDS]))
    return log_softmax(getattr(output, "logits", output)[0].float().numpy())


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_float32_is_what_transformers_computes(name: str, tiny_model: Callable[[str], TinyModel]) -> None:
    tiny = tiny_model(name)
    assert np.abs(logprobs(tiny, "float32") - log_softmax(tiny.logits(TINY_IDS))).max() <= 1e-3


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_bfloat16_is_no_worse_than_that_of_transformers(name: str, tiny_model: Callable[[str], TinyModel]) -> None:
    tiny = tiny_model(name)
    reference = log_softmax(tiny.logits(TINY_IDS))
    ours, theirs = np.abs(logprobs(tiny, "bfloat16") - reference), np.abs(rounded_reference(tiny) - reference)
    assert 0 < ours.mean() <= theirs.mean()
    assert np.quantile(ours, 0.999) <= np.quantile(theirs, 0.999)


# -- alone == batched == chunked == cached == preempted == resubmitted ----------------------------------------------

FORMATS = ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k")
VARIANTS = [
    Variant(name, dtype, dtype)
    for name in ("llama", "gemma3", "gpt2", "qwen3", *(f"format-{name}" for name in FORMATS))
    for dtype in ("float16", "bfloat16")
]
# Rows of 256 for the K-quants, four query heads per KV head.
FORMAT_SETTINGS = WIDE | {"head_dim": 32, "num_attention_heads": 8}


def build(name: str, tiny_model: Callable[[str], TinyModel], folder: Path) -> Model:
    if not name.startswith("format-"):
        return load_model(open_checkpoint(tiny_model(name).path))
    recipe = GGUFRecipe("llama", "llama", FORMAT_SETTINGS, name.removeprefix("format-"))
    return load_model(open_checkpoint(build_gguf(recipe, folder).path))


@pytest.fixture(scope="module", params=[*VARIANTS, Variant("llama", "float32", "float32")], ids=str)
def subject(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[str], TinyModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Subject]:
    variant: Variant = request.param
    made = Subject(variant, build(variant.name, tiny_model, tmp_path_factory.mktemp("model")), backend="cuda")
    yield made
    for program in made.programs.values():
        program.close()


@pytest.mark.parametrize(
    ("count", "schedule"),
    [
        pytest.param(2, Schedule(), id="batched-2"),
        pytest.param(7, Schedule(), id="batched-7"),
        pytest.param(32, Schedule(), id="batched-32"),
        pytest.param(7, Schedule(max_chunk_tokens=1), id="chunked-1"),
        pytest.param(7, Schedule(max_chunk_tokens=16), id="chunked-16"),
        pytest.param(7, Schedule(max_chunk_tokens=64), id="chunked-64"),
        pytest.param(32, Schedule(max_batch_tokens=23), id="few-tokens"),
        pytest.param(32, Schedule(num_blocks=22, arrivals_per_step=1), id="preempted"),
        pytest.param(32, Schedule(num_blocks=22, arrivals_per_step=1, use_prefix_cache=True), id="preempted-cached"),
    ],
)
def test_the_schedule_makes_no_difference(subject: Subject, count: int, schedule: Schedule) -> None:
    _, stats = subject.check(WORKLOAD[:count], schedule)
    assert (stats.num_preemptions > 0) == (schedule.num_blocks == 22)
    if schedule.max_chunk_tokens:
        assert stats.num_steps >= SPLIT // schedule.max_chunk_tokens


def test_cached(subject: Subject) -> None:
    """A second round starts behind the prefixes that the first one left."""
    engine = subject.engine(Schedule(use_prefix_cache=True).make_scheduler())
    first, second = (run_as_they_come(engine, WORKLOAD, MAX_RUNNING) for _ in range(2))
    for request in WORKLOAD:
        assert first.result(request.request_id) == second.result(request.request_id) == subject.alone(request)
        num_cached = second.ends[request.request_id].num_cached_tokens
        assert num_cached == (len(request.prompt_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE


def test_resubmitted(subject: Subject) -> None:
    """Accepted ids become part of the prompt, and the rest comes as if nothing had happened."""
    for num_accepted, request in enumerate([*WORKLOAD[:5], *WISHES]):
        token_ids, *_ = whole = subject.alone(request)
        num_kept = min(num_accepted, len(token_ids) - 1)
        again = msgspec.structs.replace(request, output_ids=token_ids[:num_kept])
        rest = subject.run([again], Schedule(max_chunk_tokens=50))[0].result(request.request_id)
        assert rest == tuple(part[num_kept:] if isinstance(part, list) else part for part in whole)


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Schedule(), id="batched"),
        pytest.param(Schedule(max_chunk_tokens=16, use_prefix_cache=True), id="chunked"),
        pytest.param(Schedule(max_batch_tokens=40, num_score_rows=0), id="few-logits"),
        pytest.param(Schedule(num_blocks=22, use_prefix_cache=True, arrivals_per_step=1), id="preempted"),
    ],
)
def test_wishes_are_kept_beside_the_others(subject: Subject, schedule: Schedule) -> None:
    subject.check([request for pair in zip(WISHES, WORKLOAD[1:], strict=False) for request in pair], schedule)


# -- shapes that have every tiling and split ------------------------------------------------------------------------


@dataclass(frozen=True)
class Middle:
    """Two layers of a model's size, of random weights."""

    shape: Shape
    dtype: str
    max_error: float  # of logits against float32, root mean square
    prompt_len: int = 700  # three splits

    @cached_property
    def parts(self) -> tuple[Graph, dict[str, Tensor]]:
        return make_random(self.shape)

    @property
    def options(self) -> ProgramOptions:
        return ProgramOptions(
            num_blocks=512,
            max_batch_tokens=1024,
            max_logit_rows=1024,
            dtype=self.dtype,
            weight_dtype=self.shape.weight_dtype,
            kv_dtype=self.dtype,
        )

    def program(self, **changes: object) -> CudaProgram:
        made = compile_program("cuda", *self.parts, replace(self.options, **changes))  # type: ignore[arg-type]
        assert isinstance(made, CudaProgram)
        return made

    @cached_property
    def prompt(self) -> list[int]:
        return self.token_ids(0, self.prompt_len)

    def token_ids(self, seed: int, count: int) -> list[int]:
        return np.random.default_rng(seed).integers(0, self.shape.vocab_size, count).tolist()


LLAMA = Shape(2048, 16, 4, 128, 5632, 8000, "bf16", num_layers=2)
MIDDLES = {
    "bf16": Middle(LLAMA, "bfloat16", 3e-2),
    "fp8": Middle(replace(LLAMA, weight_dtype="fp8"), "bfloat16", 1e-1),
    "q4_0": Middle(replace(LLAMA, format="q4_0"), "float16", 1e-2),
    "q4_k": Middle(replace(LLAMA, format="q4_k"), "float16", 1e-2),
    "q6_k": Middle(replace(LLAMA, format="q6_k"), "bfloat16", 3e-2),
    "gemma3": Middle(replace(SHAPES["gemma3"], num_layers=2), "bfloat16", 3e-2),
    "gpt2": Middle(replace(SHAPES["gpt2"], num_layers=2), "float16", 1e-2),
    "odd": Middle(replace(SHAPES["odd"], num_layers=2), "float32", 1e-3),
}


@dataclass
class Loaded:
    """A middle-sized model, its program, and the logits of its prompt in one chunk."""

    model: Middle
    program: CudaProgram
    whole: np.ndarray

    def logits(self, chunk_sizes: Sequence[int]) -> np.ndarray:
        return teacher_forced_logits(self.program, self.model.prompt, chunk_sizes, self.model.options)


@pytest.fixture(scope="module", params=MIDDLES)
def middle(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    model = MIDDLES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "SLAB_BYTES", 4 << 20)  # several slabs
        program = model.program()
    yield Loaded(model, program, teacher_forced_logits(program, model.prompt, [model.prompt_len], model.options))
    program.close()


def test_logits_are_nearly_those_of_plain_code_in_float32(middle: Loaded) -> None:
    options = replace(middle.model.options, dtype="float32", kv_dtype="float32", weight_dtype="auto")
    plain = compile_program("torch", *middle.model.parts, options)
    reference = teacher_forced_logits(plain, middle.model.prompt, [middle.model.prompt_len], options)
    assert reference.std() > 0.2
    assert np.sqrt(np.mean((middle.whole - reference) ** 2)) <= middle.model.max_error * reference.std()


@pytest.mark.parametrize("chunk_sizes", [[1], [17], [64], [100], [300], [5, 250, 1, 128, 33]], ids=str)
def test_chunks_make_no_difference(middle: Loaded, chunk_sizes: list[int]) -> None:
    """One by one, the linears are split over their columns and attention over the keys; in large chunks neither is."""
    np.testing.assert_array_equal(middle.logits(chunk_sizes), middle.whole)


def test_neighbours_make_no_difference(middle: Loaded) -> None:
    """A hundred rows, in prompts and decoding at once."""
    lengths = [1 + i % 29 for i in range(99)]
    neighbours = [middle.model.token_ids(seed, length) for seed, length in enumerate(lengths, start=1)]
    sizes = [[200, 1, 1, 1], *([1 + i % 7, 1, 1] for i in range(99))]
    sequences = [middle.model.prompt, *neighbours]
    together = teacher_forced_logits_batched(middle.program, sequences, sizes, middle.model.options)
    np.testing.assert_array_equal(together[0], middle.whole)
    for token_ids, logits in list(zip(sequences, together, strict=True))[1::20]:
        alone = teacher_forced_logits(middle.program, token_ids, [len(token_ids)], middle.model.options)
        np.testing.assert_array_equal(logits, alone)


def test_replays_are_what_the_launches_are(
    middle: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    middle.program._graphs.clear()
    replayed = middle.logits([1])
    assert len(middle.program._graphs) == 2  # for contexts of 256 and of 1024
    assert "not captured" not in caplog.text
    monkeypatch.setattr(middle.program, "_graphs", DecodeGraphs(None))
    np.testing.assert_array_equal(replayed, middle.logits([1]))


def test_fast_is_nearly_the_same(middle: Loaded) -> None:
    fast = middle.model.program(fast=True)
    logits = teacher_forced_logits(fast, middle.model.prompt, [middle.model.prompt_len], middle.model.options)
    fast.close()
    assert np.sqrt(np.mean((logits - middle.whole) ** 2)) <= middle.model.max_error * middle.whole.std()


def test_warm_programs_compile_nothing(middle: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that compiled something would take seconds."""
    compiled: list[str] = []
    for kernel in [found for found in gc.get_objects() if isinstance(found, triton.JITFunction)]:
        kernel.device_caches.clear()
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **said: compiled.append(said["repr"]))
    program = middle.model.program()
    assert compiled
    compiled.clear()
    for chunk_size in (1, 2, 16, 24, 64, 96, 128, 200, 256, 500, 700):
        teacher_forced_logits(program, middle.model.prompt[:chunk_size], [chunk_size], middle.model.options)
    program.close()
    assert compiled == []


# -- steps that are launched ahead ----------------------------------------------------------------------------------

PROMPT_LENS = (5, 33, 17, 260, 90)


def answers(
    program: CudaProgram, options: ProgramOptions, *, seed: int, ahead: bool, num_steps: int = 40
) -> Iterator[SampleOutput]:
    """What rows of those prompts are given, step by step; each launched before the one before is collected, or not."""
    prompts = np.random.default_rng(seed)
    driver = Driver(program, options)
    rows = [Row(prompts.integers(0, program.vocab_size, length).tolist()) for length in PROMPT_LENS]
    launched = deque()
    for _ in range(num_steps):
        counts = [len(row.token_ids) - row.num_computed for row in rows]
        inputs = driver.inputs(rows, counts)
        inputs = replace(inputs, logit_rows=inputs.row_offsets[1:] - 1)
        for row, count in zip(rows, counts, strict=True):
            row.num_computed += count
        sampling = wanted([row.num_computed for row in rows])
        if ahead:
            launched.append(program.launch(inputs, sampling, None))
            following = [-1 - i for i in range(len(rows))]
        else:
            program.forward(inputs)
            samples = program.sample(sampling)
            following = samples.token_ids.tolist()
            yield samples
        for row, token_id in zip(rows, following, strict=True):
            row.token_ids = [*row.token_ids, token_id]
        if len(launched) == 2:
            yield launched.popleft().collect()[0]
    for last in launched:
        yield last.collect()[0]


def wanted(positions: Sequence[int]) -> SamplingInputs:
    """Greedy and sampled in turn."""
    count = len(positions)
    is_greedy = np.arange(count) % 2 == 0
    return SamplingInputs(
        rows=np.arange(count, dtype=np.int32),
        temperatures=np.where(is_greedy, 0.0, 0.8).astype(np.float32),
        top_ks=np.full(count, 40, dtype=np.int32),
        top_ps=np.full(count, 0.9, dtype=np.float32),
        min_ps=np.zeros(count, dtype=np.float32),
        seeds=np.arange(count, dtype=np.uint64),
        choices=np.zeros(count, dtype=np.int32),
        positions=np.array(positions, dtype=np.int64),
        num_logprobs=np.full(count, 3, dtype=np.int32),
    )


def check_same(ours: Sequence[SampleOutput], theirs: Sequence[SampleOutput]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(other, name))


def test_launched_ahead_is_computed_the_same(middle: Loaded) -> None:
    options = middle.model.options
    ahead, one_by_one = (list(answers(middle.program, options, seed=1, ahead=ahead)) for ahead in (True, False))
    check_same(ahead, one_by_one)
    token_ids = np.stack([samples.token_ids for samples in one_by_one])
    assert len(np.unique(token_ids)) > 10


def test_two_programs_side_by_side(tiny_model: Callable[[str], TinyModel]) -> None:
    """Their steps are under way at the same time."""
    models = [load_model(open_checkpoint(tiny_model(name).path)) for name in ("llama", "gemma3")]
    options = replace(TINY_OPTIONS, dtype="bfloat16", kv_dtype="bfloat16")
    programs = [compile_model("cuda", model, options) for model in models]
    alone = [list(answers(program, options, seed=n, ahead=False)) for n, program in enumerate(programs)]
    both = [answers(program, options, seed=n, ahead=True) for n, program in enumerate(programs)]
    for ours, theirs in zip(zip(*both, strict=True), zip(*alone, strict=True), strict=True):
        check_same(ours, theirs)


# -- graphs and memory ----------------------------------------------------------------------------------------------


@pytest.fixture
def llama(tiny_model: Callable[[str], TinyModel]) -> Model:
    return load_model(open_checkpoint(tiny_model("llama").path))


def test_graphs_are_dropped_when_what_they_read_has_moved(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "STAGE_NUMBERS", 1)
    program = compile_model("cuda", llama, TINY_OPTIONS)
    assert isinstance(program, CudaProgram)
    plain = teacher_forced_logits(program, TINY_IDS[:8], [8], TINY_OPTIONS)
    driver, row = Driver(program, TINY_OPTIONS), Row(TINY_IDS[:8])
    decoded = [driver.step([row], [1])[0] for _ in range(4)]
    assert len(program._graphs) == 1
    driver.step([Row(TINY_IDS) for _ in range(6)], [len(TINY_IDS)] * 6)  # of more numbers than any before
    assert len(program._graphs) == 0
    decoded += [driver.step([row], [1])[0] for _ in range(4)]
    assert len(program._graphs) == 1
    np.testing.assert_array_equal(np.concatenate(decoded), plain)


@contextlib.contextmanager
def limited_memory(num_bytes: int) -> Iterator[None]:
    """No more than that beside what torch has now."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_more_memory_for_keys_than_there_is_is_refused_and_given_back() -> None:
    model = MIDDLES["gpt2"]
    graph, _ = model.parts
    model.program().close()  # whatever is made once
    gc.collect()
    before = torch.cuda.memory_allocated()
    free, _ = torch.cuda.mem_get_info()
    num_blocks = free // kv_block_bytes(graph.attention_specs, model.dtype) + 1
    with pytest.raises(ConfigError, match=r"GiB are needed: weights .*; lower --kv-cache-memory"):
        model.program(num_blocks=num_blocks)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


def test_weights_that_do_not_fit_are_refused() -> None:
    with limited_memory(1 << 20), pytest.raises(ConfigError, match="not enough for the weights and activations"):
        MIDDLES["bf16"].program()


def test_the_cache_grows_as_far_as_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MIDDLES["q4_k"]
    graph, _ = model.parts
    slab_blocks = (16 << 20) // kv_block_bytes(graph.attention_specs, model.dtype)
    monkeypatch.setattr(memory, "SLAB_BYTES", 16 << 20)
    options = replace(model.options, num_blocks=8 * slab_blocks)
    program = model.program(num_blocks=options.num_blocks)
    pool = BlockPool(options.num_blocks, BLOCK_SIZE, None, program.reserve)
    expected = teacher_forced_logits(program, model.prompt[:100], [100], replace(options, num_blocks=slab_blocks))
    backed = program.reserve(1)
    assert backed % slab_blocks == 0
    with limited_memory(5 * (16 << 20) // 2):  # two slabs and a half
        assert program.reserve(options.num_blocks) == backed + 2 * slab_blocks
        assert not pool.can_allocate(options.num_blocks)
        assert pool.num_blocks == backed + 2 * slab_blocks
        driver, row = Driver(program, options), Row(model.prompt[:100])
        driver.free_blocks = list(range(pool.num_blocks))  # the last, from the end
        np.testing.assert_array_equal(driver.step([row], [100])[0], expected)
        driver.free_blocks = [pool.num_blocks]
        with pytest.raises(EngineError, match=f"block {pool.num_blocks} is used"):
            driver.step([Row(model.prompt[:5])], [5])
    assert program.reserve(options.num_blocks) == options.num_blocks
    program.close()


def test_requests_go_on_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool shrinks to what there is, and requests wait or are preempted."""
    monkeypatch.setattr(memory, "SLAB_BYTES", 16 << 20)
    model = MIDDLES["q4_k"]
    requests = [make_request(f"r{n}", model.token_ids(n, 300), max_tokens=12, num_logprobs=1) for n in range(24)]

    def run(is_limited: bool) -> tuple[FullTranscript, int]:
        program = model.program(num_blocks=1024)
        scheduler = Schedule(num_blocks=1024).make_scheduler()
        scheduler.block_pool = BlockPool(1024, BLOCK_SIZE, None, program.reserve)
        with limited_memory(16 << 20) if is_limited else contextlib.nullcontext():
            transcript = run_as_they_come(Engine(program, scheduler), requests, 4)
        program.close()
        return transcript, scheduler.block_pool.num_blocks

    (unlimited, all_blocks), (limited, few_blocks) = (run(is_limited) for is_limited in (False, True))
    assert all_blocks == 1024
    assert few_blocks < 480  # of 20 for each
    assert [limited.result(r.request_id) for r in requests] == [unlimited.result(r.request_id) for r in requests]


# -- the server -----------------------------------------------------------------------------------------------------

BODIES = [{"prompt": f"{n} and {n + 1} are", "max_new_tokens": 4 + n, "stop_on_eos": False} for n in range(8)]


@pytest.fixture(scope="module")
def tiny_file(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(smollm2_path, tmp_path_factory.mktemp("served") / "tiny.gguf")


@pytest.fixture
def server(tiny_file: Path) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "roseinfer", "serve", str(tiny_file), "--device", "cuda", "--port", "0"]
    command += ["--dtype", "float32", "--kv-dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            yield ServerProcess(process)
        finally:
            process.kill()


def test_the_server_answers_as_the_cpu_does(server: ServerProcess, tiny_file: Path) -> None:
    async def ask() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            replies = await asyncio.gather(*(client.post("/generate", json=body) for body in BODIES))
            return [reply.json()["text"] for reply in replies]

    with InferenceEngine(str(tiny_file), device="cpu", use_amp=False) as engine:
        expected = [engine.generate(**body) for body in BODIES]
    assert asyncio.run(ask()) == expected
    assert [httpx.post(f"{server.url}/generate", json=body, timeout=120).json()["text"] for body in BODIES] == expected
    assert server.stop() == 0
    assert not any("ERROR" in line or "Traceback" in line for line in server.log), server.log
