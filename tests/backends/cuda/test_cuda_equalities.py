"""alone == batched == chunked == cached == preempted == resubmitted, to the bit, by the CUDA backend's kernels.

The workload is a short one: the interpreter takes milliseconds for what a GPU does in microseconds, and one tile shape
for all steps, so that a device has to show the rest (test_cuda_device.py). Steps are launched ahead here too.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.messages import AddRequest
from roseinfer.models import load_model
from tests.equality import WISHES, WORKLOAD, Schedule, Subject
from tests.tiny_models import TinyModel
from tests.variants import Variant

VARIANTS = [
    Variant("llama", "float16", "float16"),
    Variant("gemma3", "bfloat16", "bfloat16"),
    Variant("gguf-llama-q4_k", "float16", "float32"),
]
# Prompts of 5, 33, 17 and 15 tokens; and one around the border of two splits of attention.
SHORT = [msgspec.structs.replace(WORKLOAD[i], max_tokens=3 + i % 3) for i in (0, 2, 3, 9)]
LONG = msgspec.structs.replace(WORKLOAD[1], max_tokens=2)
WISHING = [msgspec.structs.replace(request, max_tokens=3) for request in (WISHES[0], WISHES[2])]


@pytest.fixture(scope="module")
def make_subject(tiny_model: Callable[[str], TinyModel]) -> Callable[[Variant], Subject]:
    made: dict[Variant, Subject] = {}

    def make(variant: Variant) -> Subject:
        if variant not in made:
            model = load_model(open_checkpoint(tiny_model(variant.name).path))
            made[variant] = Subject(variant, model, backend="cuda")
        return made[variant]

    return make


@pytest.fixture(params=VARIANTS, ids=str)
def subject(request: pytest.FixtureRequest, make_subject: Callable[[Variant], Subject]) -> Subject:
    return make_subject(request.param)


@pytest.fixture
def llama(make_subject: Callable[[Variant], Subject]) -> Subject:
    return make_subject(VARIANTS[0])


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Schedule(), id="batched"),
        pytest.param(Schedule(max_batch_tokens=12, use_prefix_cache=True), id="chunked"),
        pytest.param(Schedule(num_blocks=5, use_prefix_cache=True, arrivals_per_step=1), id="preempted"),
    ],
)
def test_short_requests(subject: Subject, schedule: Schedule) -> None:
    _, stats = subject.check(SHORT, schedule)
    assert (stats.num_preemptions > 0) == (schedule.num_blocks == 5)


def test_cached(subject: Subject) -> None:
    again = msgspec.structs.replace(SHORT[1], request_id="again")
    transcript, stats = subject.run([SHORT[1], again], Schedule(use_prefix_cache=True, arrivals_per_step=1))
    assert stats.num_prefix_hits == 32
    assert transcript.result("again") == transcript.result(SHORT[1].request_id) == subject.alone(SHORT[1])


def test_resubmitted(subject: Subject) -> None:
    token_ids, *_ = whole = subject.alone(SHORT[2])
    again = msgspec.structs.replace(SHORT[2], output_ids=token_ids[:2])
    rest = subject.run([again], Schedule(max_chunk_tokens=8))[0].result(again.request_id)
    assert rest == tuple(part[2:] if isinstance(part, list) else part for part in whole)


def test_wishes_beside_others(llama: Subject) -> None:
    """Steps with edited rows are computed one by one, the others ahead."""
    requests: list[AddRequest] = [WISHING[0], SHORT[0], WISHING[1], SHORT[3]]
    llama.check(requests, Schedule(max_batch_tokens=40, num_score_rows=4))


def test_two_splits_of_keys(llama: Subject) -> None:
    llama.check([SHORT[0], LONG], Schedule(max_chunk_tokens=100))
