"""What an answer must look like, in OpenAI's and vLLM's words → a `Grammar`."""

from __future__ import annotations

import json
from typing import Any

from roseinfer.constraints.limits import MAX_SCHEMA_DEPTH
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar
from roseinfer.server.json_body import levels_of
from roseinfer.server.schemas.response_format import JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from roseinfer.server.schemas.sampling import SamplingFields, StructuredOutputs


def answer_grammar(body: SamplingFields, response_format: ResponseFormat | None) -> tuple[Grammar | None, str]:
    """The grammar of the whole answer, if the body asks for any, and the field that does.

    Raises InvalidRequestError for a schema that is no schema, and for a body that asks twice.
    """
    from_format = _format_grammar(response_format)
    if body.structured_outputs is None:
        return from_format, "response_format"
    if from_format is not None:
        raise InvalidRequestError("structured_outputs and response_format exclude each other", "structured_outputs")
    return _structured_grammar(body.structured_outputs), "structured_outputs"


def _format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    if isinstance(wanted, JsonObjectFormat):
        return _any_object()
    if not isinstance(wanted, JsonSchemaFormat):
        return None
    schema = wanted.json_schema.schema_
    return _any_object() if schema is None else _schema_grammar(schema, "response_format.json_schema.schema")


def _structured_grammar(wanted: StructuredOutputs) -> Grammar:
    from roseinfer import constraints

    if wanted.json_ is not None:
        return _schema_grammar(_parse_schema(wanted.json_), "structured_outputs.json")
    if wanted.regex is not None:
        return Grammar("regex", wanted.regex)
    if wanted.choice is not None:
        return constraints.grammar_of_choices(wanted.choice)
    if wanted.grammar is not None:
        return constraints.grammar_of_gbnf_or_lark(wanted.grammar)
    return constraints.grammar_of_json_object()


def _any_object() -> Grammar:
    from roseinfer.constraints import grammar_of_json_object

    return grammar_of_json_object()


def _parse_schema(given: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    param = "structured_outputs.json"
    try:
        schema = json.loads(given)
    except (ValueError, RecursionError):
        raise InvalidRequestError(f"{param} is no JSON", param) from None
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{param} must be a JSON object", param)
    return schema


def _schema_grammar(schema: dict[str, Any], param: str) -> Grammar:
    check_schema_depth(schema, param)
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))


def check_schema_depth(schema: Any, param: str) -> None:
    """Raises InvalidRequestError naming `param` for more levels than a grammar is made of."""
    if any(depth > MAX_SCHEMA_DEPTH for depth, _ in enumerate(levels_of(schema), 1)):
        raise InvalidRequestError(f"{param} may be nested at most {MAX_SCHEMA_DEPTH} levels deep", param)
