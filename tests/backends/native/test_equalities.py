"""alone == batched == chunked == cached == preempted == resubmitted, to the bit, on the real kernels.

The reference of a request is its run alone: one chunk, no prefix cache, one thread. Whatever else the engine is
doing, token ids, logprobs and the most likely tokens beside them must be the same bits, for every architecture,
weight format, dtype, kind of KV cache and instruction set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from roseinfer.backends import Program
from roseinfer.backends.native import _native
from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.messages import AddRequest, EngineStats
from roseinfer.engine.engine import Engine
from roseinfer.models import Model, load_model
from roseinfer.quant import format_names
from roseinfer.scheduler.scheduler import Scheduler
from tests import tiny_models
from tests.fake_engine import make_request
from tests.fake_grammars import FakeCompiler, hashed_grammar
from tests.full_engine import FullTranscript
from tests.harness import compile_model, log_softmax, teacher_forced_logits, teacher_forced_logits_batched
from tests.tiny_models import WIDE, GGUFRecipe, TinyModel, build_gguf
from tests.variants import BLOCK_SIZE, KV_DTYPES, MAX_STEP_TOKENS, NUM_BLOCKS, Variant

MAX_RUNNING = 32
SPLIT = 256  # attention merges its partial sums at multiples of this position
LOWER_ISAS = [isa for isa in _native.available_isas() if isa != _native.isa("auto")]

# -- what is run --------------------------------------------------------------------------------------------------


def prompts() -> list[list[int]]:
    """32 prompts: most start with one of two shared texts, and lengths lie at and beside the borders of blocks and
    splits. The first seven hold one of each kind.
    """
    rng = np.random.default_rng(0)
    short, long = (rng.integers(0, tiny_models.VOCAB_SIZE, n).tolist() for n in (70, 2 * SPLIT))
    lengths = [5, SPLIT, 33, 17, SPLIT - 6, 64, 48, SPLIT + 1, 1, 15, 16, 31, 32, 65, 69, 70, SPLIT + 40]
    made = [(long if n > 70 else short)[:n] for n in lengths]
    made += [short[: 16 * (i % 4)] + rng.integers(0, tiny_models.VOCAB_SIZE, 1 + 3 * i).tolist() for i in range(15)]
    return made


def workload() -> list[AddRequest]:
    """Greedy and sampled in turn."""
    return [
        make_request(
            f"r{i}",
            prompt,
            max_tokens=5 + 3 * (i % 4),
            temperature=0.0 if i % 2 else 0.9,
            top_k=(0, 40)[i % 3 == 0],
            top_p=(1.0, 0.9)[i % 5 == 0],
            seed=1000 + i,
            choice=i % 3,
            num_logprobs=3,
        )
        for i, prompt in enumerate(prompts())
    ]


WORKLOAD = workload()


def wishes() -> list[AddRequest]:
    """Requests that want everything that can be wanted of logits and prompts, first together and then one by one."""
    rng = np.random.default_rng(2)
    ids = rng.permutation(tiny_models.VOCAB_SIZE).tolist()
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7}
    bias = {"logit_bias": {token_id: (-1.0) ** i * i for i, token_id in enumerate(ids[:30])}}
    forbidden = {"bad_words_ids": [[i] for i in ids[:50]] + [[i, ids[70]] for i in ids[:70]], "min_tokens": 6}
    allowed = {"allowed_token_ids": ids[tiny_models.VOCAB_SIZE // 4 :]}
    grammar = {"grammar": hashed_grammar(7)}
    scores = {"num_prompt_logprobs": 3}
    wanted: list[dict[str, Any]] = [
        {**penalties, **bias, **forbidden, **allowed, **grammar, **scores, "priority": 1},
        {**scores, "cache_salt": "salt"},
        {**penalties, "priority": -1},
        {**bias, "num_prompt_logprobs": 0},
        {**forbidden, **allowed},
        grammar,
    ]
    return [
        msgspec.structs.replace(request, request_id=f"wish{i}", stop_token_ids=ids[-40:], max_tokens=9, **fields)
        for i, (request, fields) in enumerate(zip(WORKLOAD[1:], wanted, strict=False))
    ]


WISHES = wishes()


@dataclass(frozen=True)
class Schedule:
    """How the workload is cut into steps."""

    max_batch_tokens: int = MAX_STEP_TOKENS
    max_chunk_tokens: int | None = None
    max_running: int = MAX_RUNNING
    num_blocks: int = NUM_BLOCKS
    use_prefix_cache: bool = False
    num_threads: int = 1
    arrivals_per_step: int = MAX_RUNNING  # how many requests come before each step
    num_score_rows: int = MAX_STEP_TOKENS  # of logits, beside those of running requests

    def make_scheduler(self) -> Scheduler:
        pool = BlockPool(self.num_blocks, BLOCK_SIZE)
        max_running = min(self.max_running, self.max_batch_tokens)
        return Scheduler(
            block_pool=pool,
            prefix_cache=PrefixCache(pool) if self.use_prefix_cache else None,
            max_batch_tokens=self.max_batch_tokens,
            max_running=max_running,
            max_logit_rows=min(max_running + self.num_score_rows, MAX_STEP_TOKENS),
            max_model_len=tiny_models.MAX_POSITIONS,
            max_chunk_tokens=self.max_chunk_tokens,
        )


@dataclass
class Subject:
    """A variant's programs, and what each request of the workload is answered alone."""

    variant: Variant
    model: Model
    programs: dict[int, Program] = field(default_factory=dict)
    _alone: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_slow(self) -> bool:
        """A hundred times slower than the others: made for correctness, and run on less."""
        return self.variant.isa == "scalar"

    def program(self, num_threads: int = 1) -> Program:
        if num_threads not in self.programs:
            self.programs[num_threads] = compile_model("native", self.model, self.variant.options(num_threads))
        return self.programs[num_threads]

    def engine(self, scheduler: Scheduler, num_threads: int = 1) -> Engine:
        program = self.program(num_threads)
        return Engine(program, scheduler, FakeCompiler(program.vocab_size))  # type: ignore[arg-type]

    def alone(self, request: AddRequest) -> tuple[Any, ...]:
        if request.request_id not in self._alone:
            transcript, stats = self.run([request], Schedule())
            num_tokens = len(transcript.token_ids[request.request_id])
            assert stats.num_steps == num_tokens > 0, "the prompt was not one chunk"
            self._alone[request.request_id] = transcript.result(request.request_id)
        return self._alone[request.request_id]

    def run(self, requests: Sequence[AddRequest], schedule: Schedule) -> tuple[FullTranscript, EngineStats]:
        """Whatever earlier runs left in the KV memory is still there."""
        scheduler = schedule.make_scheduler()
        engine = self.engine(scheduler, schedule.num_threads)
        transcript = run_as_they_come(engine, requests, schedule.arrivals_per_step)
        scheduler.check()
        return transcript, engine.stats()

    def check(self, requests: Sequence[AddRequest], schedule: Schedule) -> tuple[FullTranscript, EngineStats]:
        """Every request is answered as it is alone."""
        transcript, stats = self.run(requests, schedule)
        for request in requests:
            assert transcript.result(request.request_id) == self.alone(request), request.request_id
        return transcript, stats


def run_as_they_come(engine: Engine, requests: Sequence[AddRequest], arrivals_per_step: int) -> FullTranscript:
    transcript, coming = FullTranscript(), deque(requests)
    while coming or engine.has_work:
        for _ in range(min(arrivals_per_step, len(coming))):
            engine.add(coming.popleft())
        transcript.add(engine.step().outputs)
    return transcript


# -- variants -----------------------------------------------------------------------------------------------------

ARCHITECTURES = [
    Variant("llama"),
    Variant("mistral", kv_dtype="float32"),
    Variant("qwen2"),
    Variant("qwen3", kv_dtype="bfloat16"),
    Variant("gemma3"),
    Variant("gpt2", kv_dtype="float32"),
    Variant("torch-file"),
    Variant("gguf-qwen2-rope-yarn"),
    Variant("gguf-gemma3-q5_0", kv_dtype="bfloat16"),
    Variant("llama", kv_dtype="q8"),
    Variant("gemma3", kv_dtype="q8"),
]
FORMATS = [Variant(f"format-{name}", kv_dtype=KV_DTYPES[i % 4]) for i, name in enumerate(format_names())]
DTYPES = [
    Variant(name, dtype)
    for name in ("llama-biases", "gemma3", "gpt2", "torch-file-bf16")
    for dtype in ("bfloat16", "float16", "float32")
]
LOWER = [
    Variant(name, dtype, kv_dtype, isa)
    for isa in LOWER_ISAS
    for name, dtype, kv_dtype in (
        ("gemma3", "auto", "float16"),
        ("gpt2", "bfloat16", "bfloat16"),
        ("gguf-llama-rope-linear", "auto", "q8"),
        ("gguf-qwen2-rope-yarn", "float32", "float32"),
        ("format-q4_k", "auto", "bfloat16"),
    )
]
SCHEDULED = [*ARCHITECTURES, *FORMATS, *DTYPES, *LOWER]
# Their kernels run above already; what differs is what the rows are made of.
OTHERS = [
    *[Variant(variant.name, "float32") for variant in FORMATS if variant.name != "format-f32"],
    *[Variant(name) for name in tiny_models.NAMES if name not in {variant.name for variant in SCHEDULED}],
]
# Rows of 256 for the K-quants, four query heads per KV head.
FORMAT_SETTINGS = WIDE | {"head_dim": 32, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def make_subject(
    tiny_model: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Variant], Subject]:
    models: dict[str, Model] = {}

    def build(name: str) -> Path:
        if not name.startswith("format-"):
            return tiny_model(name).path
        recipe = GGUFRecipe("llama", "llama", FORMAT_SETTINGS, name.removeprefix("format-"))
        return build_gguf(recipe, tmp_path_factory.mktemp(name)).path

    def make(variant: Variant) -> Subject:
        if variant.name not in models:
            models[variant.name] = load_model(open_checkpoint(build(variant.name)))
        return Subject(variant, models[variant.name])

    return make


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=str)
def architecture(request: pytest.FixtureRequest, make_subject: Callable[[Variant], Subject]) -> Subject:
    return make_subject(request.param)


@pytest.fixture(scope="module", params=[*SCHEDULED, *OTHERS], ids=str)
def subject(request: pytest.FixtureRequest, make_subject: Callable[[Variant], Subject]) -> Subject:
    return make_subject(request.param)


# -- one cause at a time, for every architecture ------------------------------------------------------------------


def test_the_workload_is_worth_comparing(architecture: Subject) -> None:
    """Long enough for two splits, and not one token over and over."""
    results = [architecture.alone(request) for request in WORKLOAD]
    assert sum(len(request.prompt_ids) > SPLIT for request in WORKLOAD) >= 2
    assert len({token_id for result in results for token_id in result[0]}) > 10
    third_logprobs = [top[2] for result in results for top in result[3]]
    assert len(set(third_logprobs)) > 0.9 * len(third_logprobs)


@pytest.mark.parametrize("count", [2, 7, 32])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_batched(architecture: Subject, count: int, num_threads: int) -> None:
    _, stats = architecture.check(WORKLOAD[:count], Schedule(num_threads=num_threads))
    assert stats.num_steps < sum(request.max_tokens for request in WORKLOAD[:count])


@pytest.mark.parametrize("max_chunk_tokens", [1, 16, 64])
def test_chunked(architecture: Subject, max_chunk_tokens: int) -> None:
    _, stats = architecture.check(WORKLOAD[:7], Schedule(max_chunk_tokens=max_chunk_tokens, num_threads=2))
    assert stats.num_steps >= SPLIT // max_chunk_tokens


def test_chunks_that_the_others_leave_room_for(architecture: Subject) -> None:
    architecture.check(WORKLOAD, Schedule(max_batch_tokens=23, num_threads=2))


def test_cached(architecture: Subject) -> None:
    """A second round starts behind the prefixes that the first one left."""
    scheduler = Schedule(use_prefix_cache=True).make_scheduler()
    engine = architecture.engine(scheduler)
    first, second = (run_as_they_come(engine, WORKLOAD, MAX_RUNNING) for _ in range(2))
    for request in WORKLOAD:
        assert first.result(request.request_id) == architecture.alone(request)
        assert second.result(request.request_id) == architecture.alone(request)
        num_cached = second.ends[request.request_id].num_cached_tokens
        assert num_cached == (len(request.prompt_ids) - 1) // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.parametrize("use_prefix_cache", [False, True])
def test_preempted(architecture: Subject, use_prefix_cache: bool) -> None:
    schedule = Schedule(num_blocks=22, use_prefix_cache=use_prefix_cache, arrivals_per_step=1, num_threads=2)
    _, stats = architecture.check(WORKLOAD, schedule)
    assert stats.num_preemptions > 0


def test_resubmitted(architecture: Subject) -> None:
    """Accepted ids become part of the prompt, and the rest comes as if nothing had happened."""
    for num_accepted, request in enumerate(WORKLOAD[:5]):
        token_ids, *_ = whole = architecture.alone(request)
        again = msgspec.structs.replace(request, output_ids=token_ids[:num_accepted])
        rest = architecture.run([again], Schedule(max_chunk_tokens=50))[0].result(request.request_id)
        assert rest == tuple(part[num_accepted:] if isinstance(part, list) else part for part in whole)


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Schedule(num_threads=2), id="batched"),
        pytest.param(Schedule(max_chunk_tokens=16, use_prefix_cache=True), id="chunked"),
        pytest.param(Schedule(max_batch_tokens=40, num_score_rows=0), id="few-logits"),
        pytest.param(Schedule(num_blocks=22, use_prefix_cache=True, arrivals_per_step=1), id="preempted"),
    ],
)
def test_wishes_are_kept_beside_the_others(architecture: Subject, schedule: Schedule) -> None:
    requests = [request for pair in zip(WISHES, WORKLOAD[1:], strict=False) for request in pair]
    architecture.check(requests, schedule)


def test_wishes_are_kept_by_a_resubmission(architecture: Subject) -> None:
    for num_accepted, request in enumerate(WISHES):
        token_ids, *_ = whole = architecture.alone(request)
        num_kept = min(num_accepted, len(token_ids) - 1)
        again = msgspec.structs.replace(request, output_ids=token_ids[:num_kept])
        rest = architecture.run([again], Schedule(max_chunk_tokens=50))[0].result(request.request_id)
        assert rest == tuple(part[num_kept:] if isinstance(part, list) else part for part in whole)


def test_a_prompts_logprobs_are_those_of_teacher_forcing(architecture: Subject) -> None:
    request = WISHES[1]
    scores = architecture.alone(request)[-1]
    logits = teacher_forced_logits(architecture.program(), request.prompt_ids, [64], architecture.variant.options())
    logprobs = log_softmax(logits)[:-1]
    expected = logprobs[np.arange(len(logprobs)), request.prompt_ids[1:]]
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5)
    np.testing.assert_array_equal(np.array(scores.top_ids)[:, 0], logits[:-1].argmax(axis=1))


# -- everything at once, for every variant ------------------------------------------------------------------------

SCHEDULES = st.builds(
    Schedule,
    max_batch_tokens=st.sampled_from([5, 16, 33, 64, 200, 512]),
    max_chunk_tokens=st.sampled_from([1, 16, 64, None]) | st.integers(1, 300),
    max_running=st.sampled_from([1, 2, 7, 32]),
    num_blocks=st.sampled_from([20, 24, 40, NUM_BLOCKS]),
    use_prefix_cache=st.booleans(),
    num_threads=st.sampled_from([1, 2]),
    arrivals_per_step=st.sampled_from([1, 3, 32]),
    num_score_rows=st.sampled_from([0, 10, MAX_STEP_TOKENS]),
)


@pytest.mark.parametrize("subject", SCHEDULED, indirect=True, ids=str)
# A failing schedule is readable as it is, and shrinking would run hundreds of others.
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.reuse, Phase.generate])
@given(data=st.data(), schedule=SCHEDULES)
def test_any_schedule(subject: Subject, data: st.DataObject, schedule: Schedule) -> None:
    count = data.draw(st.sampled_from([2, 7] if subject.is_slow else [2, 7, 32]))
    subject.check(data.draw(st.permutations([*WORKLOAD[:count], *WISHES[: count // 2]])), schedule)


SEQUENCE = np.random.default_rng(1).integers(0, tiny_models.VOCAB_SIZE, SPLIT + 20).tolist()
NEIGHBOURS = [np.random.default_rng(n).integers(0, tiny_models.VOCAB_SIZE, n).tolist() for n in (1, 16, 90, 30, 17, 47)]


def test_every_row_of_logits(subject: Subject) -> None:
    """Not only where tokens are sampled: all positions of a sequence, in chunks, and beside neighbours."""
    options = subject.variant.options()
    whole = teacher_forced_logits(subject.program(), SEQUENCE, [len(SEQUENCE)], options)
    assert np.isfinite(whole).all()
    for chunk_sizes in [[7, 100, 1, 33], [1], [16], [64]][: 1 if subject.is_slow else 4]:
        chunked = teacher_forced_logits(subject.program(), SEQUENCE, chunk_sizes, options)
        np.testing.assert_array_equal(chunked, whole)
    sizes = [[100, 1, 63], [1], [5], [90], [1, 2], [17], [9]]
    together = teacher_forced_logits_batched(subject.program(2), [SEQUENCE, *NEIGHBOURS], sizes, options)
    np.testing.assert_array_equal(together[0], whole)
    for neighbour, logits in zip(NEIGHBOURS, together[1:], strict=True):
        alone = teacher_forced_logits(subject.program(), neighbour, [len(neighbour)], options)
        np.testing.assert_array_equal(logits, alone)
