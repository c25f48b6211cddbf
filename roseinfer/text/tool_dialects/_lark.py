"""Lark grammars in llguidance's syntax, for answers that are calls or hold calls.

Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from roseinfer.text.reasoning import ReasoningTags
from roseinfer.text.token_bytes import replace_surrogates

# JSON as `json.dumps` writes it, which is what models saw in training; escapes that Python's strings have as well.
_JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"u',
}


class LarkGrammar:
    """Rules as they are added. `special_tokens`: ids by name of those markers that are special tokens, which text
    can never match.
    """

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        self._rules: list[str] = []

    def rule(self, body: str, options: str = "") -> str:
        """Adds a rule, gives its name."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def choice(self, bodies: list[str]) -> str:
        """Any one of these."""
        return self.rule(" | ".join(map(self.rule, bodies)))

    def marker(self, marker: str) -> str:
        """A marker, be it a token or text."""
        token_id = self._special_tokens.get(marker)
        return literal(marker) if token_id is None else f"<[{token_id}]>"

    def text_until(self, marker: str) -> str:
        """Any text up to the first `marker`, which is part of it."""
        if marker in self._special_tokens:
            return self.rule(f"TEXT {self.marker(marker)}")
        return self.rule(f"TEXT {literal(marker)}", "[lazy]")

    def reasoning(self, tags: ReasoningTags, is_open: bool) -> str:
        """What may come before the answer proper, or must come if the prompt has opened it."""
        thought = f'{self.text_until(tags.end)} ("\\n" "\\n"?)?'
        return self.rule(thought if is_open else f"({self.marker(tags.start)} {thought})?")

    def build(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *self._rules, r"TEXT: /(.|\n)*/", ""])


def literal(text: str) -> str:
    """Exactly this text."""
    return json.dumps(replace_surrogates(text), ensure_ascii=False)


def json_value(schema: Mapping[str, Any], *, is_strict: bool) -> str:
    """JSON that satisfies a schema; keywords that cannot be enforced are an error only if `is_strict`."""
    return "%json " + json.dumps({**schema, "x-guidance": {**_JSON_STYLE, "lenient": not is_strict}})


def json_call(key: str, name: str, arguments: str) -> str:
    """`{"name": "f", "arguments": ...}`, `key` being the name of the arguments."""
    head = '{"name": ' + json.dumps(name) + f', "{key}": '
    return f'{literal(head)} {arguments} "}}"'
