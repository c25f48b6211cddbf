"""What the server and the engine's process say to each other: a closed set of messages over a socket, and nothing else.

A frame is its length as four bytes, little endian, and so many bytes of MessagePack. Nothing in a frame can name code:
whatever does not fit the types below is refused.
"""

from __future__ import annotations

import select
import socket
from typing import Any

import msgspec

from roseinfer.core.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    EngineError,
    RoseinferError,
    TokenizerError,
    UnsupportedModelError,
)
from roseinfer.core.messages import AbortRequest, AddRequest, EngineStats, TokenOutput
from roseinfer.engine.model_info import ModelInfo

MAX_FRAME_BYTES = 256 << 20  # the logprobs of a long prompt are the largest message
BUFFER_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_HEAD_BYTES = 4


class LoadModel(msgspec.Struct, frozen=True, tag="load"):
    """The first command: which model, and `build_engine`'s arguments by name."""

    path: bytes
    device: str
    dtype: str
    weight_dtype: str
    kv_dtype: str
    num_threads: int
    isa: str
    max_model_len: int | None
    max_batch_tokens: int | None
    max_running: int
    kv_cache_memory: int | None
    prefix_cache: bool
    fast: bool
    max_pending_grammars: int
    grammar_seconds: float
    log_level: int
    is_restart: bool = False


class Vocabulary(msgspec.Struct, frozen=True, tag="vocabulary"):
    """What grammars have to know of the tokens; comes before the first request with one."""

    tokens: list[bytes]
    special_ids: list[int]
    eos_ids: list[int]
    vocab_size: int


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """How much of the weights is there."""

    num_loaded_bytes: int
    num_bytes: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded, requests are computed from now on."""

    info: ModelInfo
    max_model_len: int
    max_running: int
    stats: EngineStats


class LoadFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The last event of an engine that cannot start. `kind` is the error's class, if it was raised on purpose."""

    kind: str
    message: str


class StepDone(msgspec.Struct, frozen=True, tag="step"):
    """What a step has brought, and how the engine stands behind it."""

    outputs: list[TokenOutput]
    stats: EngineStats


EngineCommand = LoadModel | Vocabulary | AddRequest | AbortRequest
EngineEvent = Loading | Ready | LoadFailed | StepDone

_LOAD_ERRORS: dict[str, type[RoseinferError]] = {
    error.__name__: error
    for error in (ConfigError, DeviceError, CheckpointError, UnsupportedModelError, TokenizerError)
}


def load_failure(error: Exception) -> LoadFailed:
    message = str(error) or repr(error)
    return LoadFailed(type(error).__name__, message.encode("utf-8", "backslashreplace").decode())


def load_error(failure: LoadFailed) -> RoseinferError:
    """The error that kept the engine from starting, as it would have been raised here."""
    kind = _LOAD_ERRORS.get(failure.kind)
    return kind(failure.message) if kind else EngineError(f"the engine cannot start: {failure.message}")


def encode(message: EngineCommand | EngineEvent) -> bytes:
    """A whole frame. Raises ValueError for text that has no UTF-8, and for more than a frame holds."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes, of at most {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_HEAD_BYTES, "little") + body


class FrameReader:
    """Messages of one kind from a socket; for one thread."""

    def __init__(self, connection: socket.socket, kind: Any) -> None:
        self._connection = connection
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def read(self, timeout: float | None = None) -> Any:
        """The next message. Raises TimeoutError after so many seconds without one, EOFError when the other end is gone.

        A frame that is too long or holds anything else is a ValueError: the other end is not what it should be.
        """
        while (body := self._take()) is None:
            if timeout is not None and not self._poll.poll(1000 * timeout):
                raise TimeoutError
            try:
                data = self._connection.recv(_READ_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError
            self._buffer += data
        return self._decoder.decode(body)

    def _take(self) -> bytes | None:
        if len(self._buffer) < _HEAD_BYTES:
            return None
        stop = _HEAD_BYTES + int.from_bytes(self._buffer[:_HEAD_BYTES], "little")
        if stop > _HEAD_BYTES + MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {stop} bytes, of at most {MAX_FRAME_BYTES}")
        if len(self._buffer) < stop:
            return None
        body = bytes(self._buffer[_HEAD_BYTES:stop])
        del self._buffer[:stop]
        return body
