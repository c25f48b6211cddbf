"""What a dialect is: how a family of models writes calls of tools into its answers."""

from __future__ import annotations

import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

from roseinfer.core.errors import InvalidRequestError
from roseinfer.text.reasoning import ReasoningTags
from roseinfer.text.tool_dialects._lark import LarkGrammar, json_value
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool

MENTIONS_TOOLS = r"\{[{%][^}]*\btools\b"  # a template's expression or statement that reads them


class ToolDialect(ABC):
    """The base of each file's `Dialect`, which is stateless."""

    # Regular expressions over a chat template's source: all of these, and none of those.
    template_marks: ClassVar[tuple[str, ...]]
    foreign_marks: ClassVar[tuple[str, ...]] = ()

    markers: ClassVar[tuple[str, ...]] = ()  # pieces of the syntax that may be special tokens
    dropped: ClassVar[tuple[str, ...]] = ()  # special tokens beside the calls that are no content

    opening: ClassVar[str] = ""  # what every block of calls begins with; "" where nothing marks it
    separator: ClassVar[str] = ""  # between blocks
    repeats_opening: ClassVar[bool] = True  # each of several calls is a block of its own

    @property
    def needs_special_tokens(self) -> bool:
        """Whether special tokens may be part of a call, so that they have to be part of the text."""
        return bool(self.markers)

    def matches(self, template_source: str) -> bool:
        """Whether a model with this chat template writes the dialect."""

        def occurs(mark: str) -> bool:
            return re.search(mark, template_source) is not None

        return all(map(occurs, self.template_marks)) and not any(map(occurs, self.foreign_marks))

    def new_call_id(self) -> str:
        """A fresh id, as the model's template wants them."""
        return "call_" + random_id(24)

    @abstractmethod
    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        """A parser for one answer; `tools` tell it the types of arguments where the dialect does not."""

    @abstractmethod
    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        """What follows the opening: a call of one of `tools`, or several if they share it and `parallel` is true."""

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        names: Collection[str] | None = None,
        parallel: bool = True,
        special_tokens: Mapping[str, int] | None = None,
        reasoning: ReasoningTags | None = None,
        is_reasoning_open: bool = False,
    ) -> str:
        """Answers that are one call, or several if `parallel`, of the tools called `names` (None: of any).

        `special_tokens` are the ids of those markers that are special tokens in the vocabulary. Arguments satisfy
        their schema. Raises InvalidRequestError if there is no such tool.
        """
        lark = LarkGrammar(special_tokens or {})
        block = f"{lark.marker(self.opening)} " if self.opening else ""
        block = lark.rule(block + self.block(lark, _choose(tools, names), parallel=parallel))
        if parallel and self.repeats_opening:
            separator = f"{lark.rule(self.separator)} " if self.separator else ""
            block = f"{block} ({separator}{block})*"
        thought = f"{lark.reasoning(reasoning, is_reasoning_open)} " if reasoning else ""
        return lark.build(thought + block)

    def strict_grammar(
        self,
        tools: Sequence[Tool],
        *,
        parallel: bool = True,
        special_tokens: Mapping[str, int] | None = None,
        reasoning: ReasoningTags | None = None,
        is_reasoning_open: bool = False,
    ) -> str | None:
        """Free text in which a block, once it begins, is one of `tools` with arguments that satisfy the schemas of
        strict tools. None where nothing marks a block, or no tool is strict.
        """
        if not self.opening or not any(tool.is_strict for tool in tools):
            return None
        lark = LarkGrammar(special_tokens or {})
        block = self.block(lark, list(map(_loosen, tools)), parallel=parallel)
        block = lark.rule(f"{lark.text_until(self.opening)} {block}")
        thought = f"{lark.reasoning(reasoning, is_reasoning_open)} " if reasoning else ""
        return lark.build(thought + (f"{block}* TEXT" if parallel else f"({block} | TEXT)"))


def random_id(length: int) -> str:
    """Letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def arguments_json(tool: Tool) -> str:
    """A call's arguments as JSON, for a grammar."""
    return json_value(tool.parameters, is_strict=tool.is_strict)


def _choose(tools: Sequence[Tool], names: Collection[str] | None) -> list[Tool]:
    chosen = [tool for tool in tools if names is None or tool.name in names]
    if not chosen:
        raise InvalidRequestError("tool_choice asks for a call, and tools has no function to call", "tool_choice")
    return chosen


def _loosen(tool: Tool) -> Tool:
    """Arguments of tools that are not strict are whatever object the model likes."""
    return tool if tool.is_strict else Tool(tool.name, {"type": "object"})
