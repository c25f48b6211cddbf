"""What becomes of everybody when many come, come slowly, hang up or ask for more than there is: the short versions."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import connections, disconnects, kv_exhaustion, overload, slow_clients
from tests.chaos.client import Stream
from tests.chaos.memory import MIB, Memory, MemoryWatch
from tests.chaos.overload import Phase
from tests.chaos.result import Scale, Settings
from tests.chaos.stolen import StolenTime
from tests.chaos.storm import is_refused, retry_after

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@pytest.fixture
def settings(smollm2_path: Path) -> Settings:
    return Settings(str(smollm2_path))


@needs_linux
def test_many_connections_are_answered_or_told_when_to_come_back(settings: Settings) -> None:
    result = connections.run(settings, Scale.SHORT)
    assert result.passed, (result.figures, result.notes)
    assert result.figures["refused with Retry-After"] != 0
    assert int(result.figures["answered"]) >= 16 + 64  # who runs and who waits


@needs_linux
def test_callers_who_hang_up_leave_nothing_behind(settings: Settings) -> None:
    result = disconnects.run(settings, Scale.SHORT)
    assert result.passed, (result.figures, result.notes)
    assert {result.figures[f"in {phase}"] for phase in disconnects.PHASES} == {20}


@needs_linux
def test_a_full_kv_cache_changes_nothing(settings: Settings) -> None:
    result = kv_exhaustion.run(settings, Scale.SHORT)
    assert result.passed, (result.figures, result.notes)
    assert int(result.figures["tokens of room"]) <= int(result.figures["tokens asked for"]) / 4 + 16


@needs_linux
def test_an_overloaded_server_goes_on(settings: Settings) -> None:
    """Its speed is for a quiet machine to tell."""
    result = overload.run(settings, Scale.SHORT)
    assert not result.notes
    assert int(result.figures["refused"]) > int(result.figures["answered"]) > 16
    assert float(result.figures["share of the peak"]) > 0.3
    assert overload.is_plausible(
        float(result.figures["Retry-After p50, s"]), float(result.figures["queue drains in, s"])
    )
    assert 0 < float(result.figures["refusal in the server's log p50, ms"]) < float(result.figures["refusal p50, ms"])


@needs_linux
def test_slow_callers_are_hung_up_on(settings: Settings) -> None:
    """How little the others notice is for a quiet machine to tell."""
    result = slow_clients.run(settings, Scale.SHORT)
    assert result.figures["head-drippers hung up on"] == result.figures["head-drippers"] == 60
    limit = slow_clients.HEAD_SECONDS + slow_clients.LATE_SECONDS
    assert slow_clients.HEAD_SECONDS - 1 < float(result.figures["last head-dripper after, s"]) <= limit
    assert float(result.figures["memory growth, MiB"]) <= slow_clients.MAX_GROWTH
    assert 0 < float(result.figures["drippers to none"]) < 4
    assert 0 < float(result.figures["non-readers to readers"]) < 4


# -- the loads themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("1", 1.0), ("60", 60.0), ("3600", 3600.0), ("0", None), ("3601", None), ("-1", None), ("1.5", None), ("", None)],
)
def test_advice_is_whole_seconds(header: str, seconds: float | None) -> None:
    stream = Stream(0.0, status=503, headers={"retry-after": header}, error="status 503")
    assert retry_after(stream) == seconds
    assert is_refused(stream) == (seconds is not None)


def test_without_advice_it_is_no_refusal() -> None:
    assert not is_refused(Stream(0.0, status=429, error="status 429"))
    assert not is_refused(Stream(0.0, status=500, headers={"retry-after": "1"}, error="status 500"))


def test_advice_has_to_fit_the_queue() -> None:
    assert overload.is_plausible(20, 20)
    assert overload.is_plausible(1, 0.1)
    assert overload.is_plausible(60, 500)
    assert not overload.is_plausible(1, 20)
    assert not overload.is_plausible(60, 5)
    assert not overload.is_plausible(0, 1)


def test_goodput_counts_whole_answers_while_it_is_looked_at() -> None:
    times = [1.0, 5.0, 6.0, 11.0]  # of which two are between start and end
    whole = Stream(0.0, status=200, chunk_times=times, num_tokens=8)
    cut = Stream(0.0, status=200, chunk_times=times, num_tokens=8, error="the stream ends")
    refused = Stream(5.0, status=503, headers={"retry-after": "1"}, error="status 503")
    early = Stream(1.0, status=503, headers={"retry-after": "1"}, error="status 503")
    phase = Phase(2.0, 10.0, [whole, cut, refused, early], [], 0.0)
    assert phase.goodput == 4 / 8
    assert phase.refused == [refused]
    assert phase.broken == [cut]


def test_refusals_are_found_in_the_log() -> None:
    lines = [b"INFO ready", *(b'{"status":%d,"duration_ms":%.1f}' % pair for pair in [(503, 2.5), (200, 9), (429, 1)])]
    assert overload.refusal_seconds(b"\n".join([*lines, b'{"cut'])) == [0.0025, 0.001]


def test_growth_and_slope_of_memory() -> None:
    watch = MemoryWatch([Memory(time, 0, (100 + time) * MIB) for time in range(61)])
    assert watch.growth() == 60
    assert watch.slope(0, 60) == pytest.approx(60)
    assert watch.slope(100, 200) == 0


def test_victims_hang_up_at_every_moment() -> None:
    victims = disconnects.make_victims("http://127.0.0.1:1", 600, seed=1)
    assert Counter(victim.phase for victim in victims) == dict.fromkeys(disconnects.PHASES, 100)
    assert len({victim.request for victim in victims}) == len(victims)
    for victim in victims:
        head = victim.request.index(b"\r\n\r\n") + 4
        borders = {"connecting": (0, 0), "half head": (1, head - 1), "half body": (head, len(victim.request) - 1)}
        first, last = borders.get(victim.phase, (len(victim.request), len(victim.request)))
        assert first <= victim.num_sent <= last
    assert {victim.is_reset for victim in victims} == {True, False}


def test_other_servers_get_their_pool_at_the_end_of_their_command() -> None:
    settings, flags = kv_exhaustion.constrain(Settings("model.gguf", "serve {model} {port} --ctx-size 9"), 4)
    assert settings.peer_command == "serve {model} {port} --ctx-size 9 --ctx-size 64"
    assert not flags


def test_an_overload_is_compared_with_the_peaks_on_either_side() -> None:
    assert overload.shares_of_peak([100.0, 60.0, 40.0], [80.0, 25.0]) == [1.0, 0.5]
    assert overload.shares_of_peak([0.0, 0.0], [5.0]) == [0.0]


def test_what_other_guests_take_is_a_share_of_what_was_wanted(tmp_path: Path) -> None:
    counters = tmp_path / "stat"
    counters.write_text("cpu  10 0 5 1000 0 0 0 3 0 0\ncpu0 1 1\n")
    stolen = StolenTime(counters)
    counters.write_text("cpu  50 10 15 9000 0 0 0 23 0 0\ncpu0 1 1\n")
    assert stolen.share() == 0.25
    assert StolenTime(tmp_path / "absent").share() == 0.0
