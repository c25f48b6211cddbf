"""From the engine's thread to event loops: one wake-up per step and loop, however many streams it has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain

import msgspec

from roseinfer.core.messages import TokenOutput

MAX_SEPARATE = 64  # outputs of an inbox


class Inbox:
    """What has come for some requests and was not taken yet. Belongs to its event loop and to one reader.

    A reader that lags behind finds its outputs merged, which then take a tenth of the memory.
    """

    def __init__(self, num_requests: int = 1) -> None:
        self._num_unfinished = num_requests
        self._outputs: list[TokenOutput] = []
        self._merge_at = MAX_SEPARATE
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether every request is finished and everything has been taken."""
        return self._num_unfinished == 0 and not self._outputs

    def put(self, output: TokenOutput) -> None:
        self._outputs.append(output)
        if output.finish_reason is not None:
            self._num_unfinished -= 1
        if len(self._outputs) >= self._merge_at:
            self._outputs = merged(self._outputs)
            self._merge_at = MAX_SEPARATE + len(self._outputs)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[TokenOutput]:
        """All that came since the last call, as soon as there is anything; nothing once all requests are finished."""
        if not self._outputs and self._num_unfinished:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        outputs, self._outputs = self._outputs, []
        return outputs


def merged(outputs: Sequence[TokenOutput]) -> list[TokenOutput]:
    """One output for each request, of all its tokens."""
    by_request: dict[str, list[TokenOutput]] = {}
    for output in outputs:
        by_request.setdefault(output.request_id, []).append(output)
    return [_joined(own) for own in by_request.values()]


def _joined(outputs: Sequence[TokenOutput]) -> TokenOutput:
    """The first one tells how the request began, the last one how it ended."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    return msgspec.structs.replace(
        outputs[0],
        token_ids=list(chain.from_iterable(output.token_ids for output in outputs)),
        logprobs=list(chain.from_iterable(output.logprobs for output in outputs)),
        top_ids=list(chain.from_iterable(output.top_ids for output in outputs)),
        top_logprobs=list(chain.from_iterable(output.top_logprobs for output in outputs)),
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        error=last.error,
        error_param=last.error_param,
        decode_seconds=last.decode_seconds,
    )


class Mailbox:
    """Collects a step's outputs for the inboxes of one event loop, which is then woken once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.num_streams = 0
        self._loop = loop
        self._posted: list[tuple[Inbox, TokenOutput]] = []

    def post(self, inbox: Inbox, output: TokenOutput) -> None:
        """On the engine's thread, as `flush`."""
        self._posted.append((inbox, output))

    def flush(self) -> list[str]:
        """Hands over what was posted. Returns the requests nobody can receive any more: their loop is closed."""
        if not self._posted:
            return []
        posted, self._posted = self._posted, []
        try:
            self._loop.call_soon_threadsafe(_put_all, posted)
        except RuntimeError:
            return [output.request_id for _, output in posted]
        return []


def _put_all(posted: list[tuple[Inbox, TokenOutput]]) -> None:
    for inbox, output in posted:
        inbox.put(output)
