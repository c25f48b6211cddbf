"""Every kind of grammar → the Lark text that is compiled."""

from __future__ import annotations

import json
import re

from roseinfer.constraints.json_schema import prepare_schema
from roseinfer.constraints.limits import MAX_LARK_SYMBOLS
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar

# Forcing would allow one spelling of a text that is the only one possible; the model chooses its own.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'

_SYMBOL = re.compile(
    r"//[^\n]*|\#[^\n]*"  # comments, which count for nothing
    r"""|("(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|[\w.-]+|[*+?{(\[|~&])"""
)


def source_of(grammar: Grammar) -> str:
    """What llguidance is given. Raises InvalidRequestError for what can be told without compiling."""
    if grammar.kind == "json_schema":
        return f"start: %json {prepare_schema(grammar.text)}{_OPTIONS}"
    if grammar.kind == "regex":
        return _lark_of_regex(grammar.text) + _OPTIONS
    _check_size(grammar.text)
    return grammar.text + _OPTIONS


def _lark_of_regex(regex: str) -> str:
    from llguidance import LLMatcher

    if not regex:
        raise InvalidRequestError("the regex must not be empty", "grammar")
    lark = json.loads(LLMatcher.grammar_from_regex(regex))["grammars"][0]["lark_grammar"]
    return str(lark)


def _check_size(lark: str) -> None:
    num_symbols = sum(match[1] is not None for match in _SYMBOL.finditer(_without_schemas(lark)))
    if num_symbols > MAX_LARK_SYMBOLS:
        raise InvalidRequestError(
            f"a lark grammar may have at most {MAX_LARK_SYMBOLS} symbols, got {num_symbols}", "grammar"
        )


def _without_schemas(lark: str) -> str:
    """A JSON schema within is no concern of the symbol count: what it compiles to is unambiguous."""
    decoder, kept, end = json.JSONDecoder(), [], 0
    for match in re.finditer(r"%json\s*(?=\{)", lark):
        if match.start() < end:
            continue
        try:
            after = decoder.raw_decode(lark, match.end())[1]
        except (ValueError, RecursionError):
            continue
        kept.append(lark[end : match.end()])
        end = after
    return "".join([*kept, lark[end:]])
