"""The short versions of the soak and of the determinism check, and proof that both notice what they are there for."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roseinfer.backends import Program
from roseinfer.bench.http_client import HttpClient
from roseinfer.core.batch import SampleOutput, SamplingInputs
from roseinfer.core.messages import PromptLogprobs, TokenOutput
from tests.chaos import determinism, soak
from tests.chaos.answer import Answer
from tests.chaos.any_request import RequestMaker
from tests.chaos.result import Result, Scale, Settings
from tests.chaos.soak_requests import soak_requests
from tests.chaos.subjects import Subject

MIB = 2**20


def assert_passed(result: Result) -> None:
    assert result.passed, "\n".join([str(result.figures), *result.notes])


# -- determinism --------------------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_what_happens_beside_them(smollm2_path: Path) -> None:
    result = determinism.run(Settings(model=str(smollm2_path)), Scale.SHORT)
    assert_passed(result)
    assert int(result.figures["sequences"]) >= 300
    assert int(result.figures["models"]) > 5


class DisturbedProgram:
    """Wrong in the last bit of a logprob, and only beside others."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        samples = self._program.sample(inputs)
        if len(samples.token_ids) < 2:
            return samples
        return dataclasses.replace(samples, logprobs=np.nextafter(samples.logprobs, np.float32(1)))


def test_a_difference_of_one_bit_is_found_and_can_be_had_again(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Subject.program
    monkeypatch.setattr(Subject, "program", lambda self, threads: DisturbedProgram(program(self, threads)))
    results = [determinism.check_result(7, [2], 10**6, smollm2_path) for _ in range(2)]
    assert not results[0].passed
    assert results[0].figures["differences"] != 0
    assert "--seed 7 --case 2" in results[0].notes[0]
    assert results[0] == results[1]


def test_causes_that_touched_too_little_are_named() -> None:
    tally = determinism.Tally(num_sequences=100)
    tally.causes.update({cause: 4 if cause == "cached" else 50 for cause in determinism.CAUSES})
    assert tally.missing_causes() == ["cached"]


def an_answer() -> Answer:
    answer = Answer()
    answer.take(
        TokenOutput("a", [1, 2], [-0.5, -0.25], [[1], [2]], [[-0.5], [-0.25]], prompt_logprobs=PromptLogprobs([-1.0]))
    )
    answer.take(TokenOutput("a", [3], [-0.125], [[3]], [[-0.125]], finish_reason="stop", stop_token_id=3))
    return answer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_ids", [1, 2, 4]),
        ("token_ids", [1, 2]),
        ("logprobs", [-0.5, -0.25, np.nextafter(-0.125, 0)]),
        ("top_ids", [[1], [2], [3], [4]]),
        ("top_logprobs", [[-0.5], [-0.25], []]),
        ("prompt_logprobs", []),
        ("prompt_logprobs", [PromptLogprobs([-1.0]), PromptLogprobs([-1.5])]),
        ("end", ("length", None, None, None)),
    ],
)
def test_every_part_of_an_answer_counts(name: str, value: object) -> None:
    assert an_answer().difference(an_answer()) is None
    other = an_answer()
    setattr(other, name, value)
    assert name in (other.difference(an_answer()) or "")


def test_an_aborted_answer_may_stop_anywhere_but_not_differ() -> None:
    aborted = Answer([1, 2], [-0.5, -0.25], [[1], [2]], [[-0.5], [-0.25]])
    aborted.take(TokenOutput("a", [], finish_reason="abort"))
    assert aborted.difference(an_answer()) is None
    aborted.token_ids[1] = 7
    assert "token_ids[1] is 7, alone 2" in (aborted.difference(an_answer()) or "")


def test_an_error_that_is_not_the_callers_is_a_difference() -> None:
    broken, refused = Answer(), Answer()
    broken.take(TokenOutput("a", [], finish_reason="error", error="out of luck"))
    refused.take(TokenOutput("a", [], finish_reason="error", error="no grammar", error_param="grammar"))
    assert broken.difference(copy.deepcopy(broken)) == "fails: out of luck"
    assert refused.difference(copy.deepcopy(refused)) is None


def test_requests_of_every_kind_are_drawn() -> None:
    maker = RequestMaker(random.Random(0), vocab_size=300, eos_id=2, max_prompt_tokens=270, max_new_tokens=20)
    requests = maker.make(400)
    assert len({request.request_id for request in requests}) == 400
    usual = requests[0]
    for name in usual.__struct_fields__:
        if name not in ("request_id", "output_ids"):
            assert len({str(getattr(request, name)) for request in requests}) > 1, name
    assert max(len(request.prompt_ids) for request in requests) == 270
    assert {request.grammar.kind for request in requests if request.grammar} == {"regex", "lark", "json_schema"}


# -- soak ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
def test_a_soaked_server_keeps_nothing(smollm2_path: Path) -> None:
    result = soak.run(Settings(model=str(smollm2_path)), Scale.SHORT)
    assert_passed(result)
    assert result.figures["requests"] == 1500


def test_a_slope_is_told_from_ups_and_downs() -> None:
    noise = itertools.cycle([0, 3 * MIB, -3 * MIB, MIB])
    level = [(x, 100 * MIB + next(noise)) for x in range(0, 90_000, 900)]
    leaking = [(x, y + 300 * x) for x, y in level]
    assert abs(soak.slope(level)) < 0.2
    assert soak.slope(leaking) == pytest.approx(300 * 10_000 / MIB, abs=0.2)


def test_the_requests_of_a_soak_are_the_same_for_the_same_seed() -> None:
    client = HttpClient("http://127.0.0.1:1")
    first, second, other = (list(itertools.islice(soak_requests(client, seed), 300)) for seed in (1, 1, 2))
    assert first == second != other
    statuses = {request.status for request in first}
    assert statuses == {200, 400, 404}
    assert len({request.victim.phase for request in first if request.victim}) == 6


@pytest.mark.parametrize(
    ("held", "usage", "is_more"),
    [
        ((7, 10, 5), 0.0, False),
        ((7, 9, 4), 0.0, False),
        ((7, 11, 5), 0.0, True),
        ((7, 10, 6), 0.0, True),
        ((8, 10, 5), 0.0, True),
        ((7, 10, 5), 1 / 8192, True),
    ],
    ids=["equal", "less", "files", "threads", "another process", "a block"],
)
def test_what_is_left_may_become_less_but_not_more(held: tuple[int, int, int], usage: float, is_more: bool) -> None:
    before = soak.Rest({"server": soak.Held(7, 10, 5)}, {"kv_cache_usage_perc": 0.0})
    after = soak.Rest({"server": soak.Held(*held)}, {"kv_cache_usage_perc": usage})
    assert after.is_more_than(before) == is_more
