"""A completion: its generations, its whole reply and its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from roseinfer.engine.checks import check_prompt_logprobs
from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.dependencies import check_room, engine_of, long_work_of, tenant_of
from roseinfer.server.json_pieces import encode_json
from roseinfer.server.openai.accounting import renamed
from roseinfer.server.openai.chunks import Chunks, reply_fields, reply_head
from roseinfer.server.openai.completion_choices import CompletionChoices
from roseinfer.server.openai.grammars import answer_grammar
from roseinfer.server.openai.models import check_model
from roseinfer.server.openai.prompts import check_count, num_chars, num_prompts, prompt_ids, prompt_texts
from roseinfer.server.openai.running import Job, num_logprobs, stream_steps
from roseinfer.server.openai.sampling import (
    check_stream_fields,
    sampling_params,
    text_options,
)
from roseinfer.server.schemas.completions import CompletionRequest
from roseinfer.server.whole import sized_reply
from roseinfer.text.output_text import TextDelta

DEFAULT_MAX_TOKENS = 16
ID_PREFIX = "cmpl"
KIND = "text_completion"


async def prepare_completion(body: CompletionRequest, request: Request) -> Job[CompletionRequest]:
    """Raises ModelNotFoundError, InvalidRequestError naming the field, ContextLengthError with both counts, and
    OverloadedError where there is no room.
    """
    engine, tenant = engine_of(request), tenant_of(request)
    check_model(engine, body.model)
    check_stream_fields(body)
    check_count(engine, num_prompts(body), body.num_choices)
    check_room(num_prompts(body) * body.num_choices, request)
    return await long_work_of(request).run_sized(num_chars(body), lambda: _prepare(engine, body, tenant), tenant)


def _prepare(engine: InferenceEngine, body: CompletionRequest, tenant: str) -> Job[CompletionRequest]:
    names = {"grammar": "structured_outputs"}
    with renamed(names):
        grammar, names["grammar"] = answer_grammar(body, body.response_format)
        params = sampling_params(
            body,
            engine.tokenizer,
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=_num_prompt_logprobs(body),
            grammar=grammar,
        )
        prompts = prompt_ids(engine, body)
        check_prompt_logprobs(params.prompt_logprobs, sum(map(len, prompts)) * body.num_choices)
        generations = engine.prepare_ids(
            prompts, params, text_options(body), n=body.num_choices, cut=body.max_tokens is None, tenant=tenant
        )
    return Job(engine, body, generations, names)


def _num_prompt_logprobs(body: CompletionRequest) -> int | None:
    """As many as are asked for as such or for an echo."""
    echoed = body.logprobs if body.echo else None
    return max((count for count in (echoed, body.prompt_logprobs) if count is not None), default=None)


async def completion_reply(job: Job[CompletionRequest], request: Request) -> Response:
    """The whole answer."""
    pairs = list(zip(job.generations, await job.run_whole(request), strict=True))
    head = reply_head(request, ID_PREFIX, KIND)
    return await sized_reply(request, sum(num_logprobs(*pair) for pair in pairs), lambda: _reply(job, head, pairs))


def _reply(
    job: Job[CompletionRequest], head: dict[str, Any], pairs: Sequence[tuple[Generation, TextDelta]]
) -> dict[str, Any]:
    choices = _choices(job)
    return {**head, "choices": [choices.first(*pair) for pair in pairs], **reply_fields(job.body, job.generations)}


def completion_stream(job: Job[CompletionRequest], request: Request) -> AsyncGenerator[bytes, None]:
    """The answer in chunks."""
    chunks = Chunks(reply_head(request, ID_PREFIX, KIND), job.body, job.generations)
    return stream_steps(job, request, _CompletionStream(_choices(job), chunks, job).write, chunks.last)


def _choices(job: Job[CompletionRequest]) -> CompletionChoices:
    echoes = prompt_texts(job.body, job.engine.tokenizer) if job.body.echo else []
    return CompletionChoices(job.body, job.engine.tokenizer, echoes)


class _CompletionStream:
    """Writes what each step brings. Most of what it writes is plain: a piece of text between two constants."""

    def __init__(self, choices: CompletionChoices, chunks: Chunks, job: Job[CompletionRequest]) -> None:
        indices = range(len(job.generations))
        self._choices = choices
        self._chunks = chunks
        self._heads = [chunks.start + b'{"index":%d,"text":' % index for index in indices]
        self._tail = b',"logprobs":null,"finish_reason":null}' + chunks.end
        self._is_plain = job.body.logprobs is None and not job.body.return_token_ids
        self._is_begun = [False for _ in indices]

    def write(self, deltas: Sequence[tuple[Generation, TextDelta]]) -> bytes:
        return b"".join([self._write(generation, delta) for generation, delta in deltas])

    def _write(self, generation: Generation, delta: TextDelta) -> bytes:
        index = generation.index
        if not self._is_begun[index]:
            self._is_begun[index] = True
            return self._chunks.chunk(self._choices.first(generation, delta))
        if delta.finish_reason is None:
            if not (delta.text or delta.tokens or (delta.token_ids and not self._is_plain)):
                return b""
            if self._is_plain and self._chunks.is_plain:
                return self._heads[index] + encode_json(delta.text) + self._tail
        return self._chunks.chunk(self._choices.next(generation, delta))
