"""Answers for parsers: what events say in sum, answers in every dialect, and ways to cut them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import strategies as st

from roseinfer.text.chat_events import ChatEvent, ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart
from roseinfer.text.tool_dialects import Tool


class Parser(Protocol):
    def push(self, text: str) -> list[ChatEvent]: ...

    def finish(self) -> list[ChatEvent]: ...


@dataclass
class Answer:
    """All events of one answer together; a call is its name and its arguments."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)

    def add(self, events: Iterable[ChatEvent]) -> None:
        for event in events:
            if isinstance(event, ContentDelta):
                assert event.text
                self.content += event.text
            elif isinstance(event, ReasoningDelta):
                assert event.text
                self.reasoning += event.text
            elif isinstance(event, ToolCallStart):
                assert event.index == len(self.calls)
                self.calls.append([event.name, ""])
                self.call_ids.append(event.call_id)
            elif isinstance(event, ToolCallArguments):
                assert event.text
                assert event.index == len(self.calls) - 1
                self.calls[event.index][1] += event.text


def parse(parser: Parser, pieces: Iterable[str]) -> Answer:
    answer = Answer()
    for piece in pieces:
        answer.add(parser.push(piece))
    answer.add(parser.finish())
    assert parser.finish() == []
    return answer


@st.composite
def cuts(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    """A text, and the pieces of one way to cut it."""
    text = draw(texts)
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[begin:end] for begin, end in itertools.pairwise([0, *borders, len(text)])]


WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"$ref": "#/$defs/Unit"},
            "detailed": {"type": "boolean"},
            "at": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {"Unit": {"enum": ["C", "F"]}},
    },
    is_strict=True,
)
LOOK_UP = Tool(
    "look-up",
    {
        "type": "object",
        "properties": {
            "words": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            "filter": {
                "type": "object",
                "properties": {"deep": {"type": "boolean"}},
                "additionalProperties": False,
            },
        },
        "additionalProperties": False,
    },
)
NOW = Tool.from_openai({"type": "function", "function": {"name": "now"}})
TOOLS: Sequence[Tool] = (WEATHER, LOOK_UP, NOW)

# In every dialect: a call of get_weather, and one of now behind it, as models write them.
TWO_CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Bonn"}}; {"name": "now", "parameters": {}}',
    "generic": '{"name": "get_weather", "arguments": {"city": "Bonn"}}\n{"name": "now", "arguments": {}}',
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bonn"}}, '
    '{"name": "now", "arguments": {}}]',
    "mistral_v11": '[TOOL_CALLS]get_weather[ARGS]{"city": "Bonn"}[TOOL_CALLS]now[ARGS]{}',
    "pythonic": "[get_weather(city='Bonn'), now()]",
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nBonn\n</parameter>\n</function>\n"
    "</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Bonn"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v3_1": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Bonn"}'
    "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
}

# Around arguments that are any JSON object, for the dialects that write them as JSON.
JSON_FRAMES = {
    "hermes": ('<tool_call>\n{"name": "f", "arguments": ', "}\n</tool_call>"),
    "llama3_json": ('{"name": "f", "parameters": ', "}"),
    "generic": ('{"name": "f", "arguments": ', "}"),
    "mistral": ('[TOOL_CALLS][{"name": "f", "arguments": ', "}]"),
    "mistral_v11": ("[TOOL_CALLS]f[ARGS]", ""),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek_v3_1": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>",
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
}
