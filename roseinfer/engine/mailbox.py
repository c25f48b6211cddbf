"""From the engine's thread to event loops: one wake-up per step and loop, however many streams it has."""

from __future__ import annotations

import asyncio

from roseinfer.core.messages import TokenOutput


class Inbox:
    """What has come for some requests and was not taken yet. Belongs to its event loop and to one reader."""

    def __init__(self, num_requests: int = 1) -> None:
        self._num_unfinished = num_requests
        self._outputs: list[TokenOutput] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether every request is finished and everything has been taken."""
        return self._num_unfinished == 0 and not self._outputs

    def put(self, output: TokenOutput) -> None:
        self._outputs.append(output)
        if output.finish_reason is not None:
            self._num_unfinished -= 1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[TokenOutput]:
        """All that came since the last call, as soon as there is anything; nothing once all requests are finished."""
        if not self._outputs and self._num_unfinished:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        outputs, self._outputs = self._outputs, []
        return outputs


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
