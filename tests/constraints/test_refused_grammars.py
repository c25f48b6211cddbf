"""What cannot be enforced, or costs too much, is a typed error in bounded time."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from roseinfer.constraints import GrammarCompiler, grammar_of_choices, grammar_of_gbnf_or_lark
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar, GrammarKind
from tests.constraints.walker import feed

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def refuse(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        compiler.compile(Grammar(kind=kind, text=text))
    assert caught.value.param == "grammar"
    assert len(caught.value.message) < 600
    return caught.value


UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("uniqueItems", {"type": "array", "uniqueItems": True}),
    ("not", {"not": {"type": "string"}}),
    ("if, then", {"if": {"type": "string"}, "then": {"minLength": 1}}),
    ("contains", {"type": "array", "contains": {"type": "integer"}}),
    ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 3}}),
    ("dependentRequired", {"dependentRequired": {"a": ["b"]}}),
    ("dependentSchemas", {"dependentSchemas": {"a": {"required": ["b"]}}}),
    ("dependencies", {"dependencies": {"a": ["b"]}}),
    ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}),
    ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}),
    ("\\$dynamicRef", {"$dynamicRef": "#x"}),
]


@pytest.mark.parametrize(("keyword", "schema"), UNSUPPORTED, ids=[keyword for keyword, _ in UNSUPPORTED])
@pytest.mark.parametrize("place", ["root", "property", "item", "option", "definition", "referred"])
def test_unsupported_keywords_are_named(
    compiler: GrammarCompiler, keyword: str, schema: dict[str, Any], place: str
) -> None:
    places: dict[str, dict[str, Any]] = {
        "root": schema,
        "property": {"type": "object", "properties": {"x": schema}},
        "item": {"type": "array", "items": {"type": "array", "prefixItems": [schema]}},
        "option": {"anyOf": [{"type": "null"}, {"allOf": [schema]}]},
        "definition": {"$defs": {"d": schema}, "type": "object"},
        "referred": {"components": {"d": schema}, "properties": {"x": {"$ref": "#/components/d"}}},
    }
    error = refuse(compiler, "json_schema", json.dumps(places[place]))
    assert f"not supported: {keyword}".replace("\\", "") in error.message


SAYS_NOTHING: list[dict[str, Any]] = [
    {"uniqueItems": False},
    {"not": False},
    {"propertyNames": {"type": "string"}},
    {"unevaluatedProperties": True},
    {"dependentRequired": {}},
    {"deprecated": True, "$comment": "x", "readOnly": True, "examples": [{"not": {}}], "default": {"if": 1}},
    {"format": "no-such-format", "contentEncoding": "base64"},
    {"x-guidance": {"lenient": True, "whitespace_pattern": "(a|b)*"}},
    {"nullable": True, "discriminator": {"propertyName": "x"}, "x-order": 3},
    {"properties": {"not": {"type": "string"}, "if": {}, "uniqueItems": {"type": "boolean"}}},
]


@pytest.mark.parametrize("extra", SAYS_NOTHING, ids=str)
def test_what_restricts_nothing_is_fine(compiler: GrammarCompiler, extra: dict[str, Any]) -> None:
    schema = {"type": "object", "additionalProperties": False, **extra}
    assert feed(compiler.compile(Grammar(kind="json_schema", text=json.dumps(schema))).start(), "{}").is_finished


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not JSON"),
        ('{"const": NaN}', "NaN"),
        ("[]", "must be an object"),
        ("false", "must be an object"),
        ('{"const": 1e999}', "finite"),
        ('{"minimum": 9007199254740993}', "2\\*\\*53"),
        ('{"enum": [{"a": [-9007199254740993]}]}', "2\\*\\*53"),
        ('{"type": "object", "minProperties": 2}', "minProperties"),
        ('{"properties": {"a\\tb": {}}}', "control characters"),
        ('{"type": "any"}', "Invalid type"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('{"$ref": "http://example.com/schema.json"}', "not present"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"$ref": "#"}', "no token"),
        ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
        ('{"type": "array", "minItems": 3, "maxItems": 2}', "minItems"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested"),
        ('{"items":' * 40 + "{}" + "}" * 40, "32 deep"),
    ],
)
def test_bad_schemas(compiler: GrammarCompiler, schema: str, reason: str) -> None:
    error = refuse(compiler, "json_schema", schema)
    assert error.message.startswith("the json schema cannot be used: ")
    with pytest.raises(InvalidRequestError, match=reason):
        raise error


@pytest.mark.parametrize("regex", ["", "(", "a\\1", "(?=a)", "\\bx", "[^\\s\\S]", "(" * 500 + ")" * 500])
def test_bad_regexes(compiler: GrammarCompiler, regex: str) -> None:
    refuse(compiler, "regex", regex)


def deep(quantity: int, opening: str, closing: str) -> str:
    return f'start: {opening * quantity}"a"{closing * quantity}'


def chain(length: int, body: str) -> str:
    return "start: r0\n" + "\n".join(f"r{i}: {body.format(i + 1)}" for i in range(length)) + f'\nr{length}: "a"'


def pattern_properties(quantity: int) -> str:
    return json.dumps({"type": "object", "patternProperties": {f"^p{i}_": {"type": "null"} for i in range(quantity)}})


def doubling(depth: int) -> str:
    return "start: R0\n" + "\n".join(f"R{i}: R{i + 1} R{i + 1}" for i in range(depth)) + f'\nR{depth}: "a"'


def patterns(quantity: int) -> str:
    return json.dumps({"allOf": [{"type": "string", "pattern": f"w{i}z"} for i in range(quantity)]})


def product(size: int) -> str:
    options = [[{"type": "object", "properties": {f"p{i}{j}": {}}} for j in range(size)] for i in range(size)]
    return json.dumps({"allOf": [{"anyOf": option} for option in options]})


# Each of these hangs the compiler, eats its memory, overflows its stack or makes a single step take seconds.
HOSTILE: list[tuple[str, GrammarKind, str]] = [
    ("parentheses", "lark", deep(30_000, "(", ")")),
    ("brackets", "lark", deep(30_000, "[", "]")),
    ("parentheses within a regex", "lark", f"start: /{'(' * 30_000}a{')' * 30_000}/"),
    ("nested grammars", "lark", "start: " + "%lark { start: " * 3000 + '"a"' + "}" * 3000),
    ("a chain of rules", "lark", chain(4500, "r{0}")),
    ("a chain that overflows the stack", "lark", chain(1400, "r{0}").replace("r1400: ", 'r1400: r0? ')),
    ("a chain of optional rules", "lark", chain(3000, "r{0}?")),
    ("rules that may be empty", "lark", "start: " + "r " * 30_000 + '\nr: "a"?'),
    ("repetitions of repetitions", "lark", "start: " + "(r*)* " * 10_000 + '\nr: "a"?'),
    ("doubling terminals", "lark", doubling(60)),
    ("intersections", "lark", "start: T\nT: " + " & ".join(f"/(\\p{{L}}|.{{{i}}})*x.*/" for i in range(1, 60))),
    ("contains all", "lark", "start: T\nT: " + " & ".join(f"/(?s:.*)w{i}z(?s:.*)/" for i in range(40))),
    ("optional letters", "lark", "start: T\nT: /" + "a?" * 25_000 + "a" * 5000 + "/"),
    ("left recursion without an end", "lark", "start: a\na: b\nb: a"),
    ("ambiguous alternatives", "lark", "start: " + " | ".join(f'"w{i}"' for i in range(6000))),
    ("disjoint patterns", "json_schema", pattern_properties(2000)),
    ("patterns of one string", "json_schema", patterns(20)),
    ("product of options", "json_schema", product(10)),
    ("references to itself", "json_schema", '{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}'),
    ("huge multiple", "json_schema", '{"type": "integer", "multipleOf": 982451653}'),
    ("huge length", "json_schema", '{"type": "string", "maxLength": 9223372036854775808}'),
    ("huge range", "json_schema", json.dumps({"type": "integer", "maximum": 10**300})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "text"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_hostile_grammars_are_refused_in_time(
    compiler: GrammarCompiler, name: str, kind: GrammarKind, text: str
) -> None:
    compiler.compile(Grammar(kind="regex", text="up"))  # the process is there, or comes up again
    started, longest_pause = time.monotonic(), 0.0
    refused = threading.Event()
    thread = threading.Thread(target=lambda: (refuse(compiler, kind, text), refused.set()))
    thread.start()
    while thread.is_alive():
        before = time.monotonic()
        time.sleep(0.001)
        longest_pause = max(longest_pause, time.monotonic() - before)
    assert refused.is_set()
    assert time.monotonic() - started < 2.0
    assert longest_pause < 0.5  # other threads run meanwhile; on a busy machine not at once
    assert feed(compiler.compile(Grammar(kind="regex", text=f"{name}!")).start(), f"{name}!").is_finished


CHEAP_THOUGH_LARGE: list[tuple[GrammarKind, str]] = [
    ("regex", "(a{1,1000}){1,1000}"),
    ("regex", "a{1000000000}"),
    ("regex", "(a|b)*a(a|b){30}"),
    ("regex", "(\\p{L}|\\d\\w){1,100000}"),
    ("lark", 'start: start "a" | "a"'),
    ("lark", 'start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}'),
    ("json_schema", '{"type": "array", "items": {"type": "string"}, "maxItems": 1000000000}'),
    ("json_schema", '{"type": "string", "minLength": 1000000}'),
    ("json_schema", json.dumps({"enum": [f"value number {i}" for i in range(2800)]})),
    ("json_schema", json.dumps({"type": "object", "required": [f"p{i}" for i in range(2000)]})),
]


@pytest.mark.parametrize(("kind", "text"), CHEAP_THOUGH_LARGE, ids=[text[:40] for _, text in CHEAP_THOUGH_LARGE])
def test_large_counts_cost_little(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> None:
    started = time.monotonic()
    compiler.compile(Grammar(kind=kind, text=text))
    assert time.monotonic() - started < 2.0


def test_schemas_within_a_lark_grammar_do_not_count_as_symbols(compiler: GrammarCompiler) -> None:
    schema = json.dumps({"enum": [f"value {i} (and) more [words]" for i in range(900)]})
    compiler.compile(Grammar(kind="lark", text=f"start: %json {schema}"))
    refuse(compiler, "lark", f"start: %json {schema} " + "x " * 6000 + '\nx: "a"')


def test_gbnf_is_converted(compiler: GrammarCompiler) -> None:
    gbnf = 'root ::= answer ws # comment\nanswer ::= "yes" | "n\\u00f6" | [\\u0041-\\u0043]{2}\nws ::= [ \\t]?\n'
    grammar = compiler.compile(grammar_of_gbnf_or_lark(gbnf))
    for text in ("yes", "nö ", "AC"):
        feed(grammar.start(), text)


def test_lark_is_left_alone() -> None:
    for text in ('start: "a"', '%llguidance {}\nstart: "::="', 'start: "x ::= y"'):
        assert grammar_of_gbnf_or_lark(text) == Grammar(kind="lark", text=text)


@pytest.mark.parametrize(
    ("gbnf", "reason"),
    [
        ('answer ::= "yes"', "root"),
        ("root ::= missing", "missing"),
        ('root ::= "unfinished', "cannot be read"),
        ("root ::= \"\\", "cannot be read"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
        ('root ::= "a"\n' + "".join(f'r{i} ::= "a"\n' for i in range(300)), "256 rules"),
        ('root ::= "' + "a" * 20_000 + '"', "16384 bytes"),
    ],
)  # fmt: skip
def test_bad_gbnf(gbnf: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        grammar_of_gbnf_or_lark(gbnf)
    assert caught.value.param == "grammar"


def test_gbnf_of_the_largest_size_takes_no_time_to_speak_of() -> None:
    rules = [f"r{i} ::= r{i + 1}" for i in range(254)]
    text = "\n".join(["root ::= r0", *rules, "r254 ::= " + '"a" ' * 3000])
    started = time.monotonic()
    grammar_of_gbnf_or_lark(text)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("choices", [[], [""], ["a", ""], ["\ud800"]])
def test_bad_choices(choices: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        grammar_of_choices(choices)
    assert caught.value.param == "grammar"
