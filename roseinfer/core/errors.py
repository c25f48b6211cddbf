"""Every error that roseinfer raises on purpose.

RoseinferError
├── InvalidRequestError        a field of one request is wrong; HTTP 400
│   └── ContextLengthError     the prompt (plus max_tokens) does not fit; names both counts
├── OverloadedError            the queue is full or the server is draining; HTTP 503
│   ├── RateLimitedError       one caller's share of it is full; HTTP 429
│   └── EngineRestartingError  the engine died or hangs and is coming back; HTTP 503
├── EngineError                a request died of a fault of ours; HTTP 500
│   └── EngineStoppedError     the engine went away before the request was finished; HTTP 503
├── ConfigError                a flag, variable or TOML key is wrong
│   └── DeviceError            the device asked for is not there
└── CheckpointError            a model file is damaged, hostile or not what it says
    ├── UnsupportedModelError  sound, but an architecture or format we do not run
    └── TokenizerError         the vocabulary or the merges are unusable

DeviceLostError is no Exception: it ends the engine, and the requests go on in the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class RoseinferError(Exception):
    """Base of every error raised on purpose."""


class InvalidRequestError(RoseinferError):
    """One request's field is wrong. `param` names the field, `code` is OpenAI's error code or None."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The request needs more positions than the model or the KV cache has."""

    def __init__(self, message: str, param: str = "prompt") -> None:
        super().__init__(message, param, "context_length_exceeded")


class OverloadedError(RoseinferError):
    """The request was refused before any work was done; the caller may come back after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitedError(OverloadedError):
    """The caller asks for more than its share; others would still be served."""


class EngineRestartingError(OverloadedError):
    """The engine is on its way back."""


class EngineError(RoseinferError):
    """A request ended because of a fault in the engine."""


class EngineStoppedError(EngineError):
    """The engine was stopped before a request was finished; another server, or this one later, can do it again."""


class ConfigError(RoseinferError):
    """A setting is wrong; the message names it."""


class DeviceError(ConfigError):
    """The device or instruction set asked for is not available."""


class DeviceLostError(BaseException):
    """The device failed in a way that this process cannot recover from. No Exception, so that no single request is
    blamed for it: it is a death like any other.
    """


class CheckpointError(RoseinferError):
    """A model file cannot be used; the message names the file and what is wrong in it."""


class UnsupportedModelError(CheckpointError):
    """The file is sound, but holds an architecture or a weight format that roseinfer does not run."""


class TokenizerError(CheckpointError):
    """The tokenizer's vocabulary, merges or settings cannot be used."""


def exit_code_of(command: Callable[[], object]) -> int:
    """How a command ends: an error raised on purpose is one line; 2 = what was asked for is wrong, 1 = it failed."""
    try:
        command()
    except RoseinferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | InvalidRequestError) else 1
    except KeyboardInterrupt:
        return 130
    return 0
