"""llama.cpp's GBNF → Lark."""

from __future__ import annotations

import re

from roseinfer.constraints.limits import MAX_GBNF_BYTES, MAX_GBNF_RULES
from roseinfer.core.errors import InvalidRequestError

_ESCAPED_CHAR = re.compile(r"\\(?:(\\)|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_NOT_LITERAL = frozenset('"\\[]^-/')


def is_gbnf(text: str) -> bool:
    """Its rules have `::=`, which Lark has not, and it does not look like Lark elsewhere."""
    from llguidance.gbnf_to_lark import is_lark_syntax

    return "::=" in text and not is_lark_syntax(text)


def lark_of_gbnf(text: str) -> str:
    """Raises InvalidRequestError with the converter's reason."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    num_bytes, num_rules = len(text.encode("utf-8", "replace")), text.count("::=")
    if num_bytes > MAX_GBNF_BYTES or num_rules > MAX_GBNF_RULES:
        raise InvalidRequestError(
            f"a GBNF grammar may have at most {MAX_GBNF_BYTES} bytes and {MAX_GBNF_RULES} rules,"
            f" got {num_bytes} and {num_rules}",
            "grammar",
        )
    try:
        return gbnf_to_lark(_ESCAPED_CHAR.sub(_char, text))
    except RecursionError:
        raise InvalidRequestError("the GBNF grammar is too deeply nested", "grammar") from None
    except Exception as error:  # the converter raises bare ones, and IndexError at an early end
        raise InvalidRequestError(f"the GBNF grammar cannot be read: {error!s:.300}", "grammar") from error


def _char(match: re.Match[str]) -> str:
    """The character itself, as the converter spells code points in a way that Lark does not read."""
    code = int(match[2] or match[3] or match[4] or "0", 16)
    if match[1] or code < 32 or code > 0x10FFFF or 0xD800 <= code < 0xE000 or chr(code) in _NOT_LITERAL:
        return match[0]
    return chr(code)
