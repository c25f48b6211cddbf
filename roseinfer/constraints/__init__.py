"""Structured output: a grammar becomes, position by position, the set of tokens that may come next.

Knows token ids and their bytes, not models, text or requests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roseinfer.constraints.compiler import GrammarCompiler
    from roseinfer.constraints.constraint import CompiledGrammar, Constraint
    from roseinfer.constraints.grammars import grammar_of_choices, grammar_of_gbnf_or_lark, grammar_of_json_object
    from roseinfer.constraints.token_table import TokenTable

__all__ = [
    "CompiledGrammar",
    "Constraint",
    "GrammarCompiler",
    "TokenTable",
    "grammar_of_choices",
    "grammar_of_gbnf_or_lark",
    "grammar_of_json_object",
]

_HOMES = {
    "CompiledGrammar": "constraint",
    "Constraint": "constraint",
    "GrammarCompiler": "compiler",
    "TokenTable": "token_table",
    "grammar_of_choices": "grammars",
    "grammar_of_gbnf_or_lark": "grammars",
    "grammar_of_json_object": "grammars",
}


def __getattr__(name: str) -> Any:
    # On demand, so that the process that tries grammars out starts without NumPy.
    if name in _HOMES:
        return getattr(import_module(f"roseinfer.constraints.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
