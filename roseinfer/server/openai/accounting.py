"""What a request has cost: `usage` and `timings` for the caller, facts for the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from roseinfer.core.errors import InvalidRequestError, RoseinferError
from roseinfer.generation import Generation
from roseinfer.server.dependencies import engine_of
from roseinfer.server.errors import code_of
from roseinfer.server.middleware.access_log import describe, timings_of
from roseinfer.server.schemas.sampling import SamplingFields


def usage_of(generations: Sequence[Generation], num_choices: int) -> dict[str, Any]:
    """So far. A prompt counts once, whatever the number of its choices."""
    records = [generation.record for generation in generations]
    prompts = records[::num_choices]
    num_prompt_tokens = sum(record.num_prompt_tokens for record in prompts)
    num_completion_tokens = sum(record.num_output_tokens for record in records)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(record.num_cached_tokens for record in prompts)},
    }


def timings(generations: Sequence[Generation]) -> dict[str, float | None]:
    return timings_of([generation.record for generation in generations])


@contextmanager
def accounted(
    request: Request, body: SamplingFields, generations: Sequence[Generation], names: Mapping[str, str]
) -> Iterator[None]:
    """Around the run of `generations`: leaves for the log what became of them. `names` are those of `renamed`."""
    error: str | None = None
    try:
        with renamed(names):
            yield
    except RoseinferError as failure:
        error = code_of(failure)
        raise
    finally:
        request.scope["state"]["access"] = describe(
            [generation.record for generation in generations],
            model=engine_of(request).name,
            stream=bool(body.stream),
            n=body.num_choices,
            warnings=body.warnings(),
            error=error,
        )


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors within name fields as the caller knows them: `names` has the engine's and the body's."""
    try:
        yield
    except InvalidRequestError as error:
        error.param = names.get(error.param or "", error.param)
        raise
