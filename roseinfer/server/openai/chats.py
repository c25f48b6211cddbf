"""A chat: its generations, its whole reply and its stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar
from roseinfer.engine.checks import check_prompt_logprobs
from roseinfer.generation import Generation
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.dependencies import check_room, engine_of, long_work_of, tenant_of
from roseinfer.server.openai.accounting import renamed
from roseinfer.server.openai.chat_choices import ChatStream, chat_choice
from roseinfer.server.openai.chat_prompt import ChatPrompt, chat_prompt
from roseinfer.server.openai.chunks import Chunks, reply_fields, reply_head
from roseinfer.server.openai.grammars import answer_grammar
from roseinfer.server.openai.logprobs import prompt_logprobs
from roseinfer.server.openai.models import check_model
from roseinfer.server.openai.prompts import check_count
from roseinfer.server.openai.running import Job, num_logprobs, stream_steps
from roseinfer.server.openai.sampling import (
    check_stream_fields,
    sampling_params,
    text_options,
)
from roseinfer.server.schemas.chat import ChatRequest
from roseinfer.server.schemas.tools import NamedFunction
from roseinfer.server.whole import sized_reply
from roseinfer.text import Tokenizer
from roseinfer.text.chat_output import ChatOutput
from roseinfer.text.output_text import TextDelta
from roseinfer.text.reasoning import ReasoningTags
from roseinfer.text.tool_dialects import ToolDialect, find_special_markers

ID_PREFIX = "chatcmpl"
KIND = "chat.completion"


@dataclass(frozen=True, slots=True)
class ChatJob(Job[ChatRequest]):
    """`prompt` also says how the answers are to be read."""

    prompt: ChatPrompt

    def new_output(self) -> ChatOutput:
        """What makes events of the text of one choice."""
        return ChatOutput(
            self.prompt.dialect,
            self.prompt.reasoning,
            is_reasoning_open=self.prompt.is_reasoning_open,
            tools=self.prompt.tools,
            parallel=_is_parallel(self.body),
        )


async def prepare_chat(body: ChatRequest, request: Request) -> ChatJob:
    """Raises ModelNotFoundError, InvalidRequestError naming the field, ContextLengthError with both counts, and
    OverloadedError where there is no room.
    """
    engine = engine_of(request)
    check_model(engine, body.model)
    check_stream_fields(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs may be given only with logprobs", "top_logprobs")
    check_count(engine, 1, body.num_choices)
    check_room(body.num_choices, request)
    num_bytes, tenant = len(await request.body()), tenant_of(request)
    return await long_work_of(request).run_rendering(num_bytes, lambda: _prepare(engine, body, tenant), tenant)


async def render_chat(body: ChatRequest, request: Request) -> ChatPrompt:
    """What `body` would ask the model, raising as `prepare_chat` does."""
    engine = engine_of(request)
    check_model(engine, body.model)
    num_bytes = len(await request.body())
    return await long_work_of(request).run_rendering(num_bytes, lambda: chat_prompt(engine, body), tenant_of(request))


def _prepare(engine: InferenceEngine, body: ChatRequest, tenant: str) -> ChatJob:
    max_tokens, max_tokens_field = _max_tokens(body)
    prompt = chat_prompt(engine, body)
    grammar, grammar_field = _grammar(body, prompt, engine.tokenizer)
    if grammar is not None and grammar_field != "tools" and not _may_reason(grammar, prompt):
        prompt = dataclasses.replace(prompt, reasoning=None, is_reasoning_open=False)
    names = {"grammar": grammar_field, "prompt": "messages", "max_tokens": max_tokens_field}
    with renamed(names):
        params = sampling_params(
            body,
            engine.tokenizer,
            max_tokens=engine.client.max_model_len if max_tokens is None else max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
            grammar=grammar,
        )
        check_prompt_logprobs(params.prompt_logprobs, len(prompt.ids) * body.num_choices)
        options = text_options(body, skip_special_tokens=not _reads_special_tokens(prompt, engine.tokenizer))
        generations = engine.prepare_ids(
            [prompt.ids], params, options, n=body.num_choices, cut=max_tokens is None, tenant=tenant
        )
    return ChatJob(engine, body, generations, names, prompt)


def _max_tokens(body: ChatRequest) -> tuple[int | None, str]:
    """And which of the two fields says so. Raises InvalidRequestError if they say different things."""
    old, new = body.max_tokens, body.max_completion_tokens
    if new is None:
        return old, "max_tokens"
    if old not in (None, new):
        raise InvalidRequestError("max_tokens must be max_completion_tokens, or left out", "max_tokens")
    return new, "max_completion_tokens"


def _is_parallel(body: ChatRequest) -> bool:
    return body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedFunction)


# -- what the answer must look like -------------------------------------------------------------------------


def _grammar(body: ChatRequest, prompt: ChatPrompt, tokenizer: Tokenizer) -> tuple[Grammar | None, str]:
    """And the field that asks for it."""
    with renamed({"grammar": "structured_outputs"}):
        wanted, field = answer_grammar(body, body.response_format)
    if prompt.dialect is None:
        return (wanted and _behind_reasoning(wanted, prompt, tokenizer)), field
    if wanted is not None:
        raise InvalidRequestError(
            f"{field} cannot be combined with tools that may be called; set tool_choice to none", field
        )
    text = _tool_grammar(body, prompt, prompt.dialect, tokenizer)
    return (None if text is None else Grammar("lark", text)), "tools"


def _tool_grammar(body: ChatRequest, prompt: ChatPrompt, dialect: ToolDialect, tokenizer: Tokenizer) -> str | None:
    special_tokens = find_special_markers(tokenizer, (*dialect.markers, *_tags(prompt.reasoning)))
    if body.tool_choice in (None, "auto"):
        return dialect.strict_grammar(
            prompt.tools,
            parallel=_is_parallel(body),
            special_tokens=special_tokens,
            reasoning=prompt.reasoning,
            is_reasoning_open=prompt.is_reasoning_open,
        )
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedFunction) else None
    return dialect.grammar(
        prompt.tools,
        names=None if named is None else [named],
        parallel=_is_parallel(body),
        special_tokens=special_tokens,
        reasoning=prompt.reasoning,
        is_reasoning_open=prompt.is_reasoning_open,
    )


def _may_reason(grammar: Grammar, prompt: ChatPrompt) -> bool:
    return prompt.is_reasoning_open and grammar.kind == "lark"


def _behind_reasoning(grammar: Grammar, prompt: ChatPrompt, tokenizer: Tokenizer) -> Grammar:
    """Where the prompt has opened the reasoning, a JSON answer follows behind it; other answers begin at once."""
    if not prompt.is_reasoning_open or prompt.reasoning is None or grammar.kind != "json_schema":
        return grammar
    end = prompt.reasoning.end
    special_id = find_special_markers(tokenizer, [end]).get(end)
    mark = json.dumps(end) if special_id is None else f"<[{special_id}]>"
    thought = f"thought{'' if special_id is not None else '[lazy]'}: TEXT {mark}"
    return Grammar(
        "lark",
        f"start: thought SPACE? answer\n{thought}\nanswer: %json {grammar.text}\nTEXT: /(.|\\n)*/\nSPACE: /\\n+/\n",
    )


def _reads_special_tokens(prompt: ChatPrompt, tokenizer: Tokenizer) -> bool:
    """Whether special tokens tell where calls or the reasoning begin and end."""
    if prompt.dialect is not None and prompt.dialect.needs_special_tokens:
        return True
    return bool(find_special_markers(tokenizer, _tags(prompt.reasoning)))


def _tags(reasoning: ReasoningTags | None) -> tuple[str, ...]:
    return () if reasoning is None else (reasoning.start, reasoning.end)


# -- replies ------------------------------------------------------------------------------------------------


async def chat_reply(job: ChatJob, request: Request) -> Response:
    """The whole answer."""
    pairs = list(zip(job.generations, await job.run_whole(request), strict=True))
    head = reply_head(request, ID_PREFIX, KIND)
    return await sized_reply(request, sum(num_logprobs(*pair) for pair in pairs), lambda: _reply(job, head, pairs))


def _reply(job: ChatJob, head: dict[str, Any], pairs: Sequence[tuple[Generation, TextDelta]]) -> dict[str, Any]:
    choices = [chat_choice(job.body, job.new_output(), *pair) for pair in pairs]
    return {**head, "choices": choices, **reply_fields(job.body, job.generations), **_prompt_fields(job)}


def chat_stream(job: ChatJob, request: Request) -> AsyncGenerator[bytes, None]:
    """The answer in chunks."""
    chunks = Chunks(reply_head(request, ID_PREFIX, f"{KIND}.chunk"), job.body, job.generations)
    is_plain = job.prompt.dialect is None and job.prompt.reasoning is None
    outputs = [None if is_plain else job.new_output() for _ in job.generations]
    return stream_steps(job, request, ChatStream(job.body, chunks, outputs).write, chunks.last)


def _prompt_fields(job: ChatJob) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if job.body.return_token_ids:
        fields["prompt_token_ids"] = job.prompt.ids
    found, count = job.generations[0].prompt_logprobs, job.body.prompt_logprobs
    if found is not None and count is not None:
        fields["prompt_logprobs"] = prompt_logprobs(job.engine.tokenizer, job.prompt.ids, found, count)
    return fields
