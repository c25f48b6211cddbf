"""Running what was prepared: as a whole, or step by step as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.disconnect import run_while_connected
from roseinfer.server.openai.accounting import accounted
from roseinfer.server.schemas.sampling import SamplingFields
from roseinfer.text.output_text import TextDelta

Body = TypeVar("Body", bound=SamplingFields)
Write = Callable[[Sequence[tuple[Generation, TextDelta]]], bytes]


@dataclass(frozen=True, slots=True)
class Job(Generic[Body]):
    """A request that was checked, ready to be run once. `names`: what the body calls the engine's fields, in errors."""

    engine: InferenceEngine
    body: Body
    generations: list[Generation]
    names: dict[str, str]

    async def run_whole(self, request: Request) -> list[TextDelta]:
        """One delta for each generation. Raises ClientGoneError if the caller hangs up, which ends them."""
        with accounted(request, self.body, self.generations, self.names):
            return await run_while_connected(request.receive, self.engine.arun_whole(self.generations))


async def stream_steps(
    job: Job[Body], request: Request, write: Write, last: Callable[[], bytes]
) -> AsyncGenerator[bytes, None]:
    """What `write` makes of each step and `last` of the end; closing it ends the generations."""
    with accounted(request, job.body, job.generations, job.names):
        async with aclosing(job.engine.arun(job.generations)) as steps:
            async for deltas in steps:
                if data := write(deltas):
                    yield data
        if data := last():
            yield data
