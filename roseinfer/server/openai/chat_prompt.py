"""A chat's messages and tools → the prompt, and how the answer to it is to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from roseinfer.core.errors import InvalidRequestError
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.openai.accounting import renamed
from roseinfer.server.openai.grammars import check_schema_depth
from roseinfer.server.schemas.chat import ChatRequest, TemplateFields
from roseinfer.server.schemas.tools import NamedFunction
from roseinfer.text.chat_template import ChatTemplate, RenderedPrompt
from roseinfer.text.reasoning import ReasoningTags, find_reasoning_tags
from roseinfer.text.tool_dialects import Tool, ToolDialect, find_dialect


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """`dialect` is None where no tool may be called, `reasoning` for models that do not reason."""

    rendered: RenderedPrompt
    ids: list[int]
    tools: list[Tool]
    dialect: ToolDialect | None
    reasoning: ReasoningTags | None
    is_reasoning_open: bool


def chat_prompt(engine: InferenceEngine, body: ChatRequest) -> ChatPrompt:
    """Raises InvalidRequestError naming the field: also for tools that the model's template knows nothing of."""
    template = template_of(engine)
    tools = callable_tools(body)
    source = template.tool_source if tools else template.source
    dialect = _dialect(source) if tools else None
    rendered = render(template, body, with_tools=bool(tools), variables=_effort(body, source))
    reasoning = find_reasoning_tags(source)
    return ChatPrompt(
        rendered,
        encode(engine, rendered, body.add_special_tokens),
        tools,
        dialect,
        reasoning,
        is_reasoning_open=reasoning is not None and reasoning.is_opened_by(rendered.text),
    )


def template_of(engine: InferenceEngine) -> ChatTemplate:
    """Raises InvalidRequestError for a model that has none."""
    template = engine.tokenizer.chat_template
    if template is None:
        raise InvalidRequestError(
            f"{engine.name} has no chat template: it continues texts and does not converse; use /v1/completions",
            "messages",
            "chat_template_missing",
        )
    return template


def callable_tools(body: ChatRequest) -> list[Tool]:
    """Those that the model is told of. Raises InvalidRequestError where it must call one, and there is none."""
    if not body.tools and body.tool_choice not in (None, "none", "auto"):
        raise InvalidRequestError("tool_choice asks for a call, and tools has no function to call", "tool_choice")
    if isinstance(body.tool_choice, NamedFunction):
        name = body.tool_choice.function.name
        if name not in [tool.function.name for tool in body.tools or ()]:
            raise InvalidRequestError(f"tool_choice: there is no function {name!r} in tools", "tool_choice")
    if body.tool_choice == "none":
        return []
    for index, tool in enumerate(body.tools or ()):
        check_schema_depth(tool.function.parameters or {}, f"tools.{index}.function.parameters")
    return [Tool.from_openai(tool.model_dump(exclude_none=True)) for tool in body.tools or ()]


def render(
    template: ChatTemplate, body: TemplateFields, *, with_tools: bool, variables: dict[str, Any] | None = None
) -> RenderedPrompt:
    """Raises InvalidRequestError for what the template refuses."""
    is_continued = bool(body.continue_final_message)
    begins_answer = not is_continued if body.add_generation_prompt is None else body.add_generation_prompt
    return template.render(
        [message.model_dump(exclude_unset=True) for message in body.messages],
        tools=[tool.model_dump(exclude_unset=True) for tool in body.tools or ()] if with_tools else None,
        add_generation_prompt=begins_answer,
        continue_final_message=is_continued,
        variables={**(variables or {}), **(body.chat_template_kwargs or {})},
    )


def encode(engine: InferenceEngine, rendered: RenderedPrompt, add_special_tokens: bool | None) -> list[int]:
    """Raises ContextLengthError for what cannot fit, before any work is done on it."""
    with renamed({"prompt": "messages"}):
        engine.check_length(rendered.text)
    return engine.tokenizer.encode_segments(rendered.segments, add_bos=None if add_special_tokens else False)


def _dialect(source: str) -> ToolDialect:
    dialect = find_dialect(source)
    if dialect is None:
        raise InvalidRequestError(
            "tools: this model's chat template knows no tools; leave them out, or set tool_choice to none", "tools"
        )
    return dialect


def _effort(body: ChatRequest, source: str) -> dict[str, Any]:
    """`reasoning_effort` as the template knows it."""
    if body.reasoning_effort is None:
        return {}
    if "reasoning_effort" in source:
        return {"reasoning_effort": body.reasoning_effort}
    if "enable_thinking" in source:
        return {"enable_thinking": body.reasoning_effort != "none"}
    if body.reasoning_effort == "none" and find_reasoning_tags(source) is None:
        return {}
    raise InvalidRequestError(
        f"reasoning_effort: this model's chat template has no setting for {body.reasoning_effort!r}", "reasoning_effort"
    )
