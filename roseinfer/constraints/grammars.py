"""Grammars that callers ask for without writing one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from roseinfer.constraints.gbnf import is_gbnf, lark_of_gbnf
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar


def grammar_of_json_object() -> Grammar:
    """Any JSON object."""
    return Grammar(kind="json_schema", text='{"type":"object"}')


def grammar_of_choices(choices: Sequence[str]) -> Grammar:
    """Exactly one of `choices`, character for character. Raises InvalidRequestError if there are none to choose."""
    if not choices:
        raise InvalidRequestError("choice must name at least one string", "grammar")
    for choice in choices:
        if not choice or not is_encodable(choice):
            raise InvalidRequestError(f"choice must hold strings that are not empty, got {choice!r:.80}", "grammar")
    # One terminal: as alternatives of a rule each would cost an item of the parser.
    options = " | ".join(json.dumps(choice) for choice in choices)
    return Grammar(kind="lark", text=f"start: CHOICE\nCHOICE: {options}")


def grammar_of_gbnf_or_lark(text: str) -> Grammar:
    """A grammar in llama.cpp's GBNF, which has rules with `::=`, or in Lark as llguidance reads it.

    Raises InvalidRequestError if a GBNF cannot be converted; a Lark grammar is looked at when it is compiled.
    Takes up to a second for a hostile GBNF, so it is not for an event loop.
    """
    return Grammar(kind="lark", text=lark_of_gbnf(text) if is_gbnf(text) else text)


def is_encodable(text: str) -> bool:
    """False for lone surrogates, which no token sequence can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
