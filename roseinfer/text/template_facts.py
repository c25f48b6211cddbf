"""What a chat template's source tells about the messages it expects. Imports jinja2; is itself imported when needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import nodes


@dataclass(frozen=True)
class TemplateFacts:
    iterates_content: bool  # it can read a message's content as a list of parts
    tests_strings: bool  # it asks somewhere whether a value is a string
    reads_tool_calls: bool
    searched: tuple[str, ...]  # texts that it compares with, or looks for

    @property
    def needs_parts(self) -> bool:
        """Content that is a string would be read character by character."""
        return self.iterates_content and not self.tests_strings

    def searches(self, text: str) -> bool:
        return any(text in searched for searched in self.searched)


def find_facts(tree: nodes.Template) -> TemplateFacts:
    return TemplateFacts(
        iterates_content=_iterates_content(tree),
        tests_strings=any(test.name == "string" for test in tree.find_all(nodes.Test)),
        reads_tool_calls=_mentions(tree, "tool_calls"),
        searched=tuple(dict.fromkeys(_searched(tree))),
    )


def _mentions(tree: nodes.Template, field: str) -> bool:
    return any(node.attr == field for node in tree.find_all(nodes.Getattr)) or any(
        node.value == field for node in tree.find_all(nodes.Const)
    )


def _iterates_content(tree: nodes.Template) -> bool:
    names = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node, set())
    }
    for macro in tree.find_all(nodes.Macro):  # `render(message.content)`
        names |= {argument.name for argument in macro.args if argument.name == "content"}
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    """Whether an expression is a message's content, or one of the names it was given."""
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names


def _searched(tree: nodes.Template) -> Iterator[str]:
    for kind in (nodes.Compare, nodes.Call, nodes.Filter, nodes.Test):
        for node in tree.find_all(kind):
            for constant in node.find_all(nodes.Const):
                if isinstance(constant.value, str):
                    yield constant.value
