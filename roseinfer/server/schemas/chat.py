"""Bodies of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.schemas.base import (
    AnswerTokens,
    Items,
    MaxTokens,
    NotSupported,
    NumLogprobs,
    ReplyBody,
    RequestBody,
    counted,
)
from roseinfer.server.schemas.messages import Messages
from roseinfer.server.schemas.response_format import ResponseFormat
from roseinfer.server.schemas.sampling import SamplingFields
from roseinfer.server.schemas.tools import FunctionTool, ToolChoice
from roseinfer.server.schemas.usage import AnswerReply, PromptLogprob


class TemplateFields(RequestBody):
    """What becomes a prompt."""

    messages: Messages = Field(description="what was said so far")
    tools: Annotated[Items[FunctionTool], counted(limits.TOOLS)] | None = Field(
        None, description="functions the model may call"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="more variables for the chat template")
    add_generation_prompt: bool | None = Field(
        None, description="end the prompt where the assistant begins; default true"
    )
    continue_final_message: bool | None = Field(None, description="go on with the last message instead of answering it")
    chat_template: NotSupported = Field(None, description="not supported: templates come with the model")
    documents: NotSupported = Field(None, description="not supported")

    @model_validator(mode="after")
    def _check_tool_names(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise InvalidRequestError("tools must have different names", "tools")
        return self


class ChatRequest(TemplateFields, SamplingFields):
    max_completion_tokens: AnswerTokens | None = Field(None, description="default: as many as fit behind the prompt")
    max_tokens: MaxTokens | None = Field(None, description="the same by its old name")
    logprobs: bool | None = Field(None, description="logprobs of the tokens")
    top_logprobs: NumLogprobs | None = Field(
        None, description="and of so many likeliest ones at each place; only with logprobs"
    )
    response_format: ResponseFormat | None = Field(None, description="what the answer must look like")
    tool_choice: ToolChoice | None = Field(None, description="default auto where there are tools")
    parallel_tool_calls: bool | None = Field(None, description="more than one call in an answer; default true")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="for models whose chat template knows it"
    )
    echo: Literal[False] | None = Field(None, description="not supported in chats")

    metadata: Annotated[dict[str, str], counted(limits.METADATA)] | None = Field(None, description="means nothing here")
    modalities: Items[Literal["text"]] | None = Field(None, description="the model writes text")
    prompt_cache_key: str | None = Field(None, description="means nothing here: equal prefixes are found by themselves")
    prompt_cache_retention: str | None = Field(None, description="means nothing here")
    safety_identifier: str | None = Field(None, description="means nothing here")
    service_tier: Literal["auto", "default"] | None = Field(None, description="there is only one")
    store: Literal[False] | None = Field(None, description="nothing is ever stored")
    verbosity: Literal["medium"] | None = Field(None, description="not supported: but the default")

    audio: NotSupported = Field(None, description="not supported")
    function_call: NotSupported = Field(None, description="not supported: see tool_choice")
    functions: NotSupported = Field(None, description="not supported: see tools")
    mm_processor_kwargs: NotSupported = Field(None, description="not supported")
    moderation: NotSupported = Field(None, description="not supported")
    prediction: NotSupported = Field(None, description="not supported")
    prompt_cache_options: NotSupported = Field(None, description="not supported")
    web_search_options: NotSupported = Field(None, description="not supported")


class CalledFunctionReply(ReplyBody):
    name: str = Field(description="which function")
    arguments: str = Field(description="JSON, as the model wrote it")


class ToolCallReply(ReplyBody):
    id: str = Field(description="to be given with the result")
    type: Literal["function"] = Field(description="only functions can be called")
    function: CalledFunctionReply = Field(description="the call")


class ChatMessage(ReplyBody):
    role: Literal["assistant"] = Field(description="who speaks")
    content: str | None = Field(description="the answer; null where there are only calls")
    refusal: None = Field(description="always null")
    reasoning_content: str | None = Field(None, description="what the model thought before it answered")
    tool_calls: list[ToolCallReply] | None = Field(None, description="what the model calls")


class TopLogprob(ReplyBody):
    token: str = Field(description="its text")
    logprob: float = Field(description="natural logarithm of its probability")
    bytes: list[int] = Field(description="what it adds to the text")


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = Field(description="the likeliest tokens at its place")


class ChatLogprobs(ReplyBody):
    content: list[TokenLogprob] = Field(description="of each token of the answer")
    refusal: None = Field(description="always null")


class ChatChoice(ReplyBody):
    index: int = Field(description="from 0 to n - 1")
    message: ChatMessage = Field(description="the answer")
    logprobs: ChatLogprobs | None = Field(description="if they were asked for")
    finish_reason: Literal["stop", "length", "tool_calls"] = Field(description="why it ends")
    stop_reason: int | str | None = Field(
        description="the stop string or token that ended it; null for the model's own"
    )
    token_ids: list[int] | None = Field(None, description="the answer's tokens, if they were asked for")


class ChatReply(AnswerReply):
    object: Literal["chat.completion"] = Field(description="what kind of reply")
    choices: list[ChatChoice] = Field(description="the answers")
    prompt_token_ids: list[int] | None = Field(None, description="the prompt's tokens, if they were asked for")
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = Field(
        None, description="of each token of the prompt but the first, by token id"
    )


class RenderReply(ReplyBody):
    prompt: str = Field(description="the text that the chat template makes of the request")
    prompt_token_ids: list[int] = Field(description="the text's tokens")
    count: int = Field(description="how many there are")
    max_model_len: int = Field(description="how many prompt and answer may have")
    warnings: list[str] | None = Field(None, description="what of the body was ignored")
