"""Chat templates: hostile ones, written from a small grammar, and damaged ones of real models."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tests.fuzz.judge import outcome_of, receive_template
from tests.fuzz.mutant import Mutant

__all__ = ["make", "make_bases", "receive", "sound"]

_FOLDER = Path(__file__).parent.parent / "text" / "chat_templates"
_WORD = re.compile(r"\{[%{#]-?|-?[%}#]\}|\w+|\s+|.", re.DOTALL)

_VALUES = [
    "messages",
    "messages[0].content",
    "tools",
    "range(10)",
    "range(10**9)",
    "'a' * 10**6",
    "[1] * 10**5",
    "''",
    "1",
]
_VALUES += [
    "custom",
    "bos_token",
    "{}",
    "[[]] * 1000",
    "10**1000",
    "-1",
    "1e308",
    "none",
    "namespace(x=1)",
    "cycler",
    "loop",
]
_VALUES += [
    "dict",
    "joiner(',')",
    "self",
    "undefined_name",
    "'x'.join",
    "''.format",
    "messages.append",
    "'%s'",
    "'{0}'",
    "x",
]
_NUMBERS = ["0", "-1", "1", "2", "1000", "10**6", "10**9", "2**63", "1e308", "true"]
_FILTERS = [
    "length",
    "list",
    "join",
    "upper",
    "reverse",
    "sort",
    "unique",
    "tojson",
    "string",
    "trim",
    "title",
    "safe",
    "int",
]
_FILTERS += [
    "first",
    "last",
    "random",
    "float",
    "abs",
    "max",
    "min",
    "sum",
    "wordcount",
    "items",
    "dictsort",
    "forceescape",
]
_FILTERS += [
    "striptags",
    "capitalize",
    "escape",
    "filesizeformat",
    "urlencode",
    "map('upper')",
    "map(attribute='__class__')",
]
_FILTERS += ["select", "reject('none')", "groupby('role')", "selectattr('role')", "attr('__class__')", "attr('format')"]
_SIZED_FILTERS = [
    "center",
    "indent",
    "batch",
    "slice",
    "truncate",
    "round",
    "wordwrap",
    "join",
    "default",
    "replace('', 'aa')",
]
_SIZED_FILTERS += ["format", "tojson", "pprint", "xmlattr", "urlize"]
_METHODS = [
    "center",
    "ljust",
    "zfill",
    "expandtabs",
    "replace",
    "split",
    "join",
    "format",
    "format_map",
    "encode",
    "translate",
]
_METHODS += [
    "append",
    "extend",
    "pop",
    "update",
    "items",
    "keys",
    "index",
    "count",
    "splitlines",
    "__class__",
    "__mro__",
]
_METHODS += [
    "__init__",
    "__globals__",
    "__subclasses__",
    "__getitem__",
    "__mul__",
    "mro",
    "gi_frame",
    "f_globals",
    "_TemplateReference__context",
]
_OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]
_SNIPPETS = [
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=['x']) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set n = namespace(s={}) %}{% for i in range(99) %}{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}"
    "{{ n.s | tojson }}{{ n }}",
    "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ messages | map(attribute='__class__.__mro__') | list }}",
    "{{ '%c' % 1114112 }}{{ '%999999999d' % 1 }}{{ '%*d' % (999999999, 1) }}",
    "{{ '{:999999999}'.format(1) }}{{ '{:{}}'.format(1, 999999999) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% extends 'x' %}",
    "{% call(x) messages() %}{% endcall %}",
    "{% filter upper %}{% for i in range(10**8) %}x{% endfor %}{% endfilter %}",
    "{% set x %}{% for i in range(10**8) %}x{% endfor %}{% endset %}",
    "{% for x in range(10**18) %}{% if loop.first %}{{ loop.length }}{% endif %}{% endfor %}",
    "{{ range(10**8) | list }}{{ range(10**8) | sum }}{{ range(10**8) | reverse | first }}",
    "{{ strftime_now('%Y' * 100000) }}{{ strftime_now('%') }}{{ strftime_now('\\0\\ud800') }}",
    "{{ raise_exception(messages) }}{{ raise_exception('x' * 10**6) }}",
    "{{ messages.__setitem__(0, 1) }}{{ messages.append(messages) }}{{ messages }}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}{% do messages.append(1) %}{% break %}{% continue %}{% debug %}",
    "{% generation %}{% for m in messages %}{% break %}{% endfor %}{% endgeneration %}{% trans %}x{% endtrans %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__ }}",
    "{{ [1, 2, 3] | batch(10**9) | list }}{{ [1] | slice(10**9) | list }}",
    "{{ 'x' | indent(10**9) }}{{ 'x' | center(10**9) }}{{ 1 | round(10**9) }}{{ 'a' | replace('', 'b' * 10**5) }}",
    "{{ ('a' * 60000) | replace('a', 'b' * 60000) }}{{ ('x' * 60000) | list | join('y' * 60000) }}",
    "{{ (range(9999) | list) * 9999 }}{{ 'ab' * 99999999 }}{{ 99999999 * [messages] }}",
    "{{ 2 ** 99999999 }}{{ 9 ** 9 ** 9 ** 9 }}{{ 1 // 0 }}{{ 1.0 ** 1e308 }}{{ (-1) ** 0.5 }}{{ 10 ** -99999 }}",
    "{{ dict(a=1, **{'b': 2}) }}{{ lipsum(10**6) }}{{ cycler(*range(10**6)).next() }}",
    "{{ 'a,' * 30000 }}{{ ('a,' * 30000).split(',') | sort | unique | list | length }}",
    "{{ messages | tojson(indent=10**9) }}{{ tools | tojson(separators=('x' * 99999, ':')) }}",
    "{{ '9' * 9000 | int }}{{ ('9' * 9000) | int }}{{ ('1e' ~ '9' * 300) | float }}",
    "{{ messages | groupby('role') | list }}{{ messages | sort(attribute='content') }}{{ [[]] | sum(start=messages) }}",
]
_NESTED = [
    "(",
    "[",
    "{'a':",
    "not ",
    "-",
    "{% if 1 %}",
    "{% for i in [1] %}",
    "{{ 1 if 1 else ",
    "a.b(",
    "'a'|upper+",
    "1+1*",
    "{#",
]


def make_bases() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.jinja"))]


def sound(bases: list[str]) -> list[Mutant]:
    """Some models have no role for tools, so the chats of the judge are not for all of them."""
    return [Mutant({"": source.encode()}) for source in bases if "tool_call" in source and "alternate" not in source]


def make(bases: list[str], rng: random.Random) -> Mutant:
    part = rng.random()
    if part < 0.3:
        source = "".join(_statement(rng) for _ in range(rng.choice([1, 2, 4])))
    elif part < 0.5:
        source = _with_snippet(rng.choice(bases), rng)
    elif part < 0.9:
        source = _mutate_words(rng.choice(bases), rng)
    else:
        opening = rng.choice(_NESTED)
        inside = "{{ " if rng.random() < 0.5 and not opening.startswith("{") else ""
        source = inside + opening * rng.choice([10, 300, 3000, 30_000])
    return Mutant({"": source.encode("utf-8", "replace")})


def _statement(rng: random.Random) -> str:
    value = _expression(rng, 3)
    form = rng.randrange(6)
    if form == 0:
        return f"{{% for x in {value} %}}{{{{ x }}}}{_statement(rng)}{{% endfor %}}"
    if form == 1:
        return f"{{% set x = {value} %}}{{{{ x }}}}"
    if form == 2:
        return f"{{% if {value} %}}{_statement(rng)}{{% endif %}}"
    if form == 3:
        return rng.choice(_SNIPPETS)
    return f"{{{{ {value} }}}}"


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([*_VALUES, *_NUMBERS])
    value = _expression(rng, depth - 1)
    form = rng.randrange(6)
    if form == 0:
        return f"{value} | {rng.choice(_FILTERS)}"
    if form == 1:
        return f"{value} | {rng.choice(_SIZED_FILTERS)}({rng.choice(_NUMBERS)})"
    if form == 2:
        return f"({value}).{rng.choice(_METHODS)}({_expression(rng, depth - 1)}, {rng.choice(_NUMBERS)})"
    if form == 3:
        return f"({value})['{rng.choice(_METHODS)}']"
    return f"({value}) {rng.choice(_OPERATORS)} ({_expression(rng, depth - 1)})"


def _with_snippet(source: str, rng: random.Random) -> str:
    ends = [match.end() for match in re.finditer(r"[%}]\}", source)]
    at = rng.choice([0, *ends])
    return source[:at] + rng.choice([rng.choice(_SNIPPETS), _statement(rng)]) + source[at:]


def _mutate_words(source: str, rng: random.Random) -> str:
    words = _WORD.findall(source)
    for _ in range(rng.choice([1, 2, 5, 20])):
        at = rng.randrange(len(words))
        action = rng.randrange(4)
        if action == 0:
            words[at] = ""
        elif action == 1:
            words[at] = rng.choice(words)
        elif action == 2:
            words[at] += rng.choice(words)
        else:
            words[at] = rng.choice([_expression(rng, 2), rng.choice(_SNIPPETS), rng.choice(_NUMBERS)])
    return "".join(words)


def receive(path: Path, rng: random.Random) -> str:
    source = path.read_text(encoding="utf-8")
    return outcome_of([receive_template(source)], "loaded")
