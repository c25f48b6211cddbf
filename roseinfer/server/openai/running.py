"""Running what was prepared: as a whole, or step by step as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from starlette.requests import Request

from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.dependencies import long_work_of, tenant_of
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
    long_work, tenant = long_work_of(request), tenant_of(request)
    with accounted(request, job.body, job.generations, job.names):
        async with aclosing(job.engine.arun(job.generations)) as steps:
            async for deltas in steps:
                size = sum(num_logprobs(*each) for each in deltas)
                if data := await long_work.run_reply(size, partial(write, deltas), tenant):
                    yield data
        if data := last():
            yield data


def num_logprobs(generation: Generation, delta: TextDelta) -> int:
    """How many there are to tell with this delta; the prompt's come with the first."""
    request, found = generation.request, generation.prompt_logprobs
    told = len(delta.tokens) * (1 + request.num_logprobs)
    if found is None or delta.num_tokens < generation.record.num_output_tokens:
        return told
    return told + len(found.logprobs) * (1 + request.num_prompt_logprobs)
