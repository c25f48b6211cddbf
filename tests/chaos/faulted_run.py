"""The same requests twice: undisturbed, and with something happening to the server in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from tests.chaos.client import Stream, ask_all
from tests.chaos.requests import ChaosRequest
from tests.chaos.servers import ServerUnderTest


@dataclass(frozen=True)
class FaultedRun:
    """`expected` is what came undisturbed, `streams` what came when the fault happened at `moment`."""

    requests: Sequence[ChaosRequest]
    expected: Sequence[Stream]
    streams: Sequence[Stream]
    moment: float  # on the clock of `time.perf_counter`

    @property
    def live(self) -> list[Stream]:
        """Those that the fault met."""
        return [stream for stream in self.streams if stream.was_live_at(self.moment)]

    @property
    def stalls(self) -> list[float]:
        """Seconds, of each stream that was live and went on."""
        return [stream.stall_after(self.moment) for stream in self.live if stream.error is None]

    @property
    def num_exact(self) -> int:
        return len(self.streams) - len(self.differences)

    @property
    def num_errors(self) -> int:
        return sum(stream.error is not None for stream in self.streams)

    @property
    def differences(self) -> list[str]:
        """One line for each stream that is not what it was undisturbed."""
        pairs = zip(self.requests, self.expected, self.streams, strict=True)
        return [text for triple in pairs if (text := difference(*triple))]


def run_with_fault(
    server: ServerUnderTest, requests: Sequence[ChaosRequest], fraction: float, fault: Callable[[], object]
) -> FaultedRun:
    """`fault` is called when this part of the time is over that the requests took undisturbed.

    Raises RuntimeError if they are not answered as they should be even then.
    """
    expected = ask_undisturbed(server, requests)
    seconds = max(stream.ended_at for stream in expected) - min(stream.started_at for stream in expected)
    streams, moment = asyncio.run(_ask_around(server, requests, fraction * seconds, fault))
    return FaultedRun(requests, expected, streams, moment)


def ask_undisturbed(server: ServerUnderTest, requests: Sequence[ChaosRequest]) -> list[Stream]:
    """Raises RuntimeError unless every one is answered."""
    streams = asyncio.run(ask_all(server.url, requests, server.api_key))
    errors = [stream.error for stream in streams if stream.error]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed though nothing had happened: {errors[0]}")
    return streams


async def _ask_around(
    server: ServerUnderTest, requests: Sequence[ChaosRequest], delay: float, fault: Callable[[], object]
) -> tuple[list[Stream], float]:
    asking = asyncio.create_task(ask_all(server.url, requests, server.api_key))
    await asyncio.sleep(delay)
    moment = perf_counter()
    # On a thread, as a fault may look on for a while.
    await asyncio.gather(asking, asyncio.to_thread(fault))
    return asking.result(), moment


def difference(request: ChaosRequest, expected: Stream, stream: Stream) -> str | None:
    """What is wrong with `stream`, None if nothing is."""
    name = f"{request.path} {sorted(request.body)}"
    if stream.error is not None:
        return f"{name}: {stream.error}"
    if stream.answer != expected.answer:
        return f"{name}: {stream.answer!r:.300} instead of {expected.answer!r:.300}"
    return None
