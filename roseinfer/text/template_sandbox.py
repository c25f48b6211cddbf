"""Jinja as chat templates expect it, in a sandbox with a budget. Imports jinja2; is itself imported when needed."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import Template, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from roseinfer.text.render_budget import RenderBudget

if TYPE_CHECKING:
    from jinja2.lexer import Token, TokenStream
    from jinja2.parser import Parser

    from roseinfer.text.control_names import Mask

_UNBOUNDED_METHODS = frozenset({"translate", "expandtabs", "encode"})
_UNBOUNDED_FILTERS = ("wordwrap", "urlize", "xmlattr", "pprint")  # no chat template has a use for them
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})
_SIZED_FILTERS = frozenset({"center", "slice", "batch", "round", "truncate"})
_TEXT_FILTERS = frozenset(
    {"string", "upper", "lower", "title", "capitalize", "trim", "escape", "e", "safe", "striptags"}
)
_MAX_TOKENS = 30_000  # of Jinja; the longest templates of models have a tenth of it
_MAX_INDENT = 64  # characters, of JSON
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class GenerationTag(Extension):
    """`{% generation %}` marks what a model is trained on, which makes no difference here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TokenLimit(Extension):
    """Compiling takes time by the number of tokens, and nothing can stop it."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream):
            if count == _MAX_TOKENS:
                raise TemplateError(f"it has more than {_MAX_TOKENS} tokens")
            yield token


class PlainNamespace(Namespace):
    """Jinja's own lets a template set attributes such as `__class__`."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"  # what it holds may be too much to show


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Thread safe. Compiles and renders within `use`, which says at whose cost."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        extensions: list[str | type[Extension]] = [GenerationTag, TokenLimit, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._finalize)
        self._current = threading.local()
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=PlainNamespace)
        for name in _UNBOUNDED_FILTERS:
            del self.filters[name]
        self.filters.update(tojson=self._tojson, join=_join, format=_format, replace=_replace, indent=_indent, sum=_sum)
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters.update(_tick=_tick, _concat=_concat)

    @contextmanager
    def use(self, budget: RenderBudget, mask: Mask | None = None) -> Iterator[None]:
        """What this thread does from here on is at the cost of `budget`; `mask` hides names in what it renders."""
        self._current.budget, self._current.mask = budget, mask
        try:
            yield
        finally:
            del self._current.budget, self._current.mask

    @property
    def budget(self) -> RenderBudget:
        budget: RenderBudget = self._current.budget
        return budget

    def compile_tree(self, tree: nodes.Template) -> Template:
        """From what `parse` made, which is changed: loops and the operator `~` ask the budget."""
        return self.from_string(_BudgetHooks().visit(tree))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes) and attr in _UNBOUNDED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.check_operands(operator, left, right)
        return self.budget.charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        budget.tick()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `str.format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            if method.__name__ == "join":
                return budget.join(owner, *args)
            _check_text_method(budget, method.__name__, owner, args, kwargs)
        return budget.charge(super().call(__context, __obj, *args, **kwargs))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget
            budget.tick()
            if name in _SIZED_FILTERS:
                budget.check_width(*args[1:], *kwargs.values())
            elif name in _TEXT_FILTERS:
                budget.text_size(args[-1])
            return budget.charge(function(*args, **kwargs))

        return bounded

    def _finalize(self, value: Any) -> Any:
        """Of every expression that is put out."""
        return self.budget.text(value)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers has it: nothing is escaped for HTML."""
        self._check_json(value, indent, separators)
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        mask = self._current.mask
        hidden = mask.hidden_in(text) if mask else {}
        for char, name in hidden.items():
            escaped = json.dumps(name, ensure_ascii=ensure_ascii)[1:-1]
            if escaped != name:  # then it is no control token's name any more
                text = text.replace(char, escaped)
        if not ensure_ascii:
            return text
        return _NOT_ASCII.sub(lambda match: match[0] if match[0] in hidden else json.dumps(match[0])[1:-1], text)

    def _check_json(self, value: Any, indent: int | str | None, separators: tuple[str, str] | None) -> None:
        self.budget.text_size(value)
        widths = [indent if isinstance(indent, int) else len(indent or "")]
        widths += [len(separator) for separator in separators or ()]
        if max(widths) > _MAX_INDENT:
            raise TemplateError(f"JSON is indented by more than {_MAX_INDENT} characters")


class _BudgetHooks(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.Filter(nodes.Const(None), "_tick", [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)


# The filters below get the environment or the context, which also keeps Jinja from computing them beforehand.


@pass_context
def _tick(context: Any, _: None) -> None:
    context.environment.budget.tick()


@pass_environment
def _concat(environment: TemplateSandbox, parts: list[Any]) -> str:
    return environment.budget.charge(environment.budget.join("", parts))


@pass_environment
def _join(environment: TemplateSandbox, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    values = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return environment.budget.join(d, values)


@pass_environment
def _format(environment: TemplateSandbox, value: Any, *args: Any, **kwargs: Any) -> Any:
    return environment.call_binop(None, "%", environment.budget.text(value), kwargs or args)


@pass_environment
def _replace(environment: TemplateSandbox, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    budget = environment.budget
    budget.check_replace(s, old, new)
    return budget.text(s).replace(budget.text(old), budget.text(new), -1 if count is None else count)


@pass_environment
def _indent(
    environment: TemplateSandbox, s: Any, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    environment.budget.check_width(width, len(width) if isinstance(width, str) else 0)
    margin = width if isinstance(width, str) else " " * width
    lines = (environment.budget.text(s) + "\n").splitlines()
    environment.budget.check_chars(sum(map(len, lines)) + len(lines) * (len(margin) + 1))
    shown = [margin + line if blank or line else line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *shown])


@pass_environment
def _sum(environment: TemplateSandbox, iterable: Any, attribute: Any = None, start: float = 0) -> Any:
    if not isinstance(start, int | float):
        raise TemplateError("sum adds numbers only")
    return sum(iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable), start)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"{message}")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _check_text_method(budget: RenderBudget, name: str, owner: Any, args: Any, kwargs: Any) -> None:
    if name in _PADDING_METHODS:
        budget.check_width(*args)
    elif name == "replace":
        budget.check_replace(owner, *args)
    elif name in ("format", "format_map"):
        budget.check_format(owner, "{", [*args, *kwargs.values()])
