from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.core.errors import CheckpointError, ConfigError, EngineError
from roseinfer.core.messages import AbortRequest, EngineStats, Grammar, PromptLogprobs, TokenOutput
from roseinfer.engine.frames import (
    MAX_FRAME_BYTES,
    EngineCommand,
    EngineEvent,
    FrameReader,
    StepDone,
    encode,
    load_error,
    load_failure,
)
from tests.fake_engine import make_request

STATS = EngineStats(1, 2, 3, 4, 5, 6, 7)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def read_all(data: bytes, kind: object) -> list[object]:
    """What a reader makes of `data`, until it ends or is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.close()
        reader, messages = FrameReader(ours, kind), []
        try:
            while True:
                messages.append(reader.read(1))
        except EOFError:
            return messages


def test_commands_and_events_arrive_as_they_were() -> None:
    request = make_request(
        "a", [1, 2**20], logit_bias={3: -1.5}, bad_words_ids=[[1, 2]], grammar=Grammar("regex", "ä+"), tenant="t"
    )
    commands = [request, AbortRequest("a")]
    assert read_all(b"".join(map(encode, commands)), EngineCommand) == commands
    output = TokenOutput(
        "a", [1], [-0.5], [[1, 2]], [[-0.5, -1.0]], "stop", 1, prompt_logprobs=PromptLogprobs([-0.25], [[1]], [[-0.25]])
    )
    step = StepDone([output, TokenOutput("b", [2])], STATS)
    assert read_all(encode(step), EngineEvent) == [step]


def test_frames_are_found_in_any_pieces(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    steps = [StepDone([TokenOutput("a", list(range(length)))], STATS) for length in (0, 1, 300, 70_000)]
    data = b"".join(map(encode, steps))

    def drip() -> None:
        for start in range(64):
            theirs.sendall(data[start : start + 1])
        theirs.sendall(data[64:])

    thread = threading.Thread(target=drip)
    thread.start()
    reader = FrameReader(ours, EngineEvent)
    assert [reader.read(5) for _ in steps] == steps
    thread.join()


def test_nobody_waits_longer_than_asked(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    reader = FrameReader(ours, EngineEvent)
    with pytest.raises(TimeoutError):
        reader.read(0.01)
    theirs.sendall(encode(StepDone([], STATS))[:-1])
    with pytest.raises(TimeoutError):
        reader.read(0.01)
    theirs.close()
    with pytest.raises(EOFError):
        reader.read(5)


@given(st.binary(max_size=64))
def test_whatever_else_comes_is_refused(body: bytes) -> None:
    """Nothing but the messages of one direction can be said in it."""
    frame = len(body).to_bytes(4, "little") + body
    for kind in (EngineCommand, EngineEvent):
        with pytest.raises(ValueError, match=r"."):
            read_all(frame, kind)


def test_an_event_is_no_command() -> None:
    with pytest.raises(ValueError, match="step"):
        read_all(encode(StepDone([], STATS)), EngineCommand)


def test_a_frame_has_a_limit() -> None:
    with pytest.raises(ValueError, match=f"of at most {MAX_FRAME_BYTES}"):
        read_all((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), EngineCommand)


def test_errors_of_loading_keep_their_kind() -> None:
    for error in (ConfigError("no room"), CheckpointError("damaged")):
        again = load_error(load_failure(error))
        assert (type(again), str(again)) == (type(error), str(error))
    again = load_error(load_failure(RuntimeError("odd")))
    assert (type(again), str(again)) == (EngineError, "the engine cannot start: odd")
