"""alone == batched == chunked == cached == preempted == resubmitted, to the bit, on the real kernels.

The reference of a request is its run alone: one chunk, no prefix cache, one thread. Whatever else the engine is
doing, token ids, logprobs and the most likely tokens beside them must be the same bits, for every architecture,
weight format, dtype, kind of KV cache and instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from roseinfer.backends.native import _native
from roseinfer.checkpoints import open_checkpoint
from roseinfer.models import Model, load_model
from roseinfer.quant import format_names
from tests import tiny_models
from tests.equality import MAX_RUNNING, SPLIT, WISHES, WORKLOAD, Schedule, Subject, run_as_they_come
from tests.harness import log_softmax, teacher_forced_logits, teacher_forced_logits_batched
from tests.tiny_models import WIDE, GGUFRecipe, TinyModel, build_gguf
from tests.variants import BLOCK_SIZE, KV_DTYPES, MAX_STEP_TOKENS, NUM_BLOCKS, Variant

LOWER_ISAS = [isa for isa in _native.available_isas() if isa != _native.isa("auto")]

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
