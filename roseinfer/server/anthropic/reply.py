"""An answer as a message of Anthropic's, and the events around its content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Fields = dict[str, Any]


def new_message(message_id: str, model: str, usage: Fields, warnings: list[str] | None) -> Fields:
    """A message in which there is nothing so far."""
    message: Fields = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    return {**message, "warnings": warnings} if warnings else message


def usage_fields(num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int) -> Fields:
    """Anthropic's three counts of input tokens add up to the prompt."""
    return {
        "input_tokens": num_prompt_tokens - num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached_tokens,
        "output_tokens": num_output_tokens,
    }


def stop_fields(
    finish_reason: str | None, stop_reason: int | str | None, stop_sequences: Sequence[str], *, has_tool_calls: bool
) -> Fields:
    """Why the answer ended, from a generation's reasons."""
    if finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if isinstance(stop_reason, str) and stop_reason in stop_sequences:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    return {"stop_reason": "tool_use" if has_tool_calls else "end_turn", "stop_sequence": None}


def closing_events(stop: Fields, usage: Fields, timings: Fields) -> Iterator[Fields]:
    """What follows the last block."""
    yield {"type": "message_delta", "delta": stop, "usage": usage, "timings": timings}
    yield {"type": "message_stop"}
