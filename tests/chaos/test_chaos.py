"""What becomes of live requests when the engine dies, hangs, is poisoned or is told to stop: the short versions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos import hang, kill, poison, stop
from tests.chaos.__main__ import table
from tests.chaos.client import Choice, Stream
from tests.chaos.faulted_run import difference
from tests.chaos.requests import KINDS, PORTABLE, mixed_requests
from tests.chaos.result import Result, Scale, Settings, percentile

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@pytest.fixture
def settings(smollm2_path: Path) -> Settings:
    return Settings(str(smollm2_path))


@needs_linux
def test_streams_outlive_their_engine(settings: Settings) -> None:
    result = kill.run(settings, Scale.SHORT)
    assert not result.notes
    assert result.figures["exact"] == result.figures["streams"] == 24
    assert result.figures["client errors"] == 0
    assert result.figures["live when killed"] != 0
    assert result.figures["restarts"] == result.figures["kills"] == 3
    assert result.figures["server survived"] == 1


@needs_linux
def test_a_hanging_engine_is_replaced_and_a_slow_one_is_not(settings: Settings) -> None:
    result = hang.run(settings, Scale.SHORT)
    assert result.passed, (result.figures, result.notes)
    assert result.figures["live when it hung"] != 0
    assert float(result.figures["longest step, s"]) > hang.SHORT_PATIENCE


@needs_linux
def test_a_poisoned_request_ends_alone(settings: Settings) -> None:
    result = poison.run(settings, Scale.SHORT)
    assert result.passed, (result.figures, result.notes)
    assert result.figures["poisons with one error"] == result.figures["poisons"] == len(poison.SHORT_FAULTS)


@needs_linux
def test_a_server_finishes_what_it_has_and_leaves_nothing_behind(settings: Settings) -> None:
    result = stop.run(settings, Scale.SHORT)
    assert result.passed, (result.figures, result.notes)
    assert result.figures["live at SIGTERM"] != 0


# -- the harness itself -----------------------------------------------------------------------------------------------


def test_requests_are_of_every_kind_and_each_is_its_own() -> None:
    requests = mixed_requests(3 * len(KINDS), seed=1)
    assert {request.path for request in requests} == {"/v1/completions", "/v1/chat/completions", "/generate"}
    assert len({str(request) for request in requests}) == len(requests)
    assert requests == mixed_requests(3 * len(KINDS), seed=1)
    assert requests != mixed_requests(3 * len(KINDS), seed=2)
    assert all("seed" in request.body or request.body["temperature"] == 0 for request in requests)


def test_other_servers_are_asked_for_nothing_of_ours() -> None:
    requests = mixed_requests(2 * len(PORTABLE), seed=1, is_portable=True)
    ours = {"return_token_ids", "structured_outputs", "repetition_penalty", "top_k"}
    assert not any(ours & request.body.keys() for request in requests if request.path != "/v1/completions")
    assert not any(request.path == "/generate" for request in requests)


def test_any_difference_is_told() -> None:
    request = mixed_requests(1, seed=1)[0]
    expected = Stream(0.0, choices=[Choice("ab", [1, 2], [-0.5, -1.0], "length")], num_tokens=2)
    same = Stream(3.0, choices=[Choice("ab", [1, 2], [-0.5, -1.0], "length")], num_tokens=2, chunk_times=[4.0])
    assert difference(request, expected, same) is None
    for choice in (
        Choice("ac", [1, 2], [-0.5, -1.0], "length"),
        Choice("ab", [1, 3], [-0.5, -1.0], "length"),
        Choice("ab", [1, 2], [-0.5, -1.0000001], "length"),
        Choice("ab", [1, 2], [-0.5, -1.0], "stop"),
    ):
        assert difference(request, expected, Stream(0.0, choices=[choice], num_tokens=2))
    assert difference(request, expected, Stream(0.0, choices=expected.choices, num_tokens=3))
    assert difference(request, expected, Stream(0.0, choices=expected.choices, num_tokens=2, error="cut off"))


def test_a_stall_is_the_longest_gap_that_the_fault_can_have_made() -> None:
    stream = Stream(started_at=0.0, chunk_times=[3.0, 4.0, 6.0, 6.5], ended_at=6.5)
    assert stream.gaps == [3.0, 1.0, 2.0, 0.5]
    assert [stream.stall_after(moment) for moment in (1.0, 3.5, 6.2, 7.0)] == [3.0, 2.0, 0.5, 0.0]
    assert [stream.was_live_at(moment) for moment in (-1.0, 1.0, 7.0)] == [False, True, False]


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([], 99) == 0


def test_the_table_has_a_row_for_each_server() -> None:
    found = Result("R1", "killed", {"kills": 3, "stall, s": 0.5}, passed=True)
    text = table([("ours", found), ("theirs", Result("R1", "killed", {"kills": 3}, passed=False))])
    assert text.splitlines()[2:] == [
        "| R1 | killed | ours | yes | kills: 3; stall, s: 0.5 |",
        "| R1 | killed | theirs | no | kills: 3 |",
    ]
