"""The object around an answer, and the events of its stream."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from roseinfer.server.responses.output import ResponseOutput
from roseinfer.server.schemas.responses import FunctionTool, ResponseRequest
from roseinfer.text.chat_events import ChatEvent

Fields = dict[str, Any]


def new_response(response_id: str, body: ResponseRequest, model: str) -> Fields:
    """A response in which there is nothing so far. What the request says of itself stands in it again."""
    reply: Fields = {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "model": model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "timings": None,
        **_settings(body),
        "background": False,
        "previous_response_id": None,
        "service_tier": "default",
        "store": False,
        "truncation": "disabled",
    }
    warnings = body.warnings()
    return {**reply, "warnings": warnings} if warnings else reply


def _settings(body: ResponseRequest) -> Fields:
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    choice = body.tool_choice
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": (choice or "auto") if isinstance(choice, str | None) else choice.model_dump(),
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "user": body.user,
    }


def _tool(tool: FunctionTool) -> Fields:
    """Clients want some of its fields to be there, be it as null."""
    optional = {"description": None, "parameters": None, "strict": bool(tool.strict)}
    return optional | tool.model_dump(by_alias=True, exclude_none=True)


def usage_fields(num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int, num_reasoning: int) -> Fields:
    return {
        "input_tokens": num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }


class ResponseWriter:
    """Writes one response, whole or as events; `response` is what there is of it so far.

    A failure may come while another thread writes events that will not be sent. It follows what was sent.
    """

    def __init__(self, response: Fields) -> None:
        self.response = dict(response)
        self._empty = response
        self._output = ResponseOutput()
        self._num_events = 0
        self._num_sent = 0, 0  # events, and items that are closed

    def begin(self) -> Iterator[Fields]:
        """The events that come before everything else."""
        yield from self._numbered([self._state("created"), self._state("in_progress")])

    def write(self, events: Iterable[ChatEvent], logprobs: Sequence[msgspec.Raw] = ()) -> Iterator[Fields]:
        """What these events of the answer add; `logprobs` are those of the text in them."""
        yield from self._numbered(self._output.write(events, logprobs))

    def close(self, *, is_cut: bool) -> Iterator[Fields]:
        """The end of the last item; `is_cut` says that the answer became too long."""
        yield from self._numbered(self._output.close("incomplete" if is_cut else "completed"))
        self.response["output"] = self._output.items

    @property
    def reasoning(self) -> str:
        """What the model thought, as far as it is closed."""
        return self._output.reasoning

    def end(self, usage: Fields, *, is_cut: bool) -> Iterator[Fields]:
        """The last event, with the whole response."""
        fields: Fields
        if is_cut:
            fields = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            fields = {"status": "completed", "completed_at": int(time.time())}
        self.response.update(fields, usage=usage)
        yield from self._numbered([self._state(self.response["status"])])

    def mark_sent(self) -> None:
        """To be called when all events so far were sent, and nobody writes any."""
        self._num_sent = self._num_events, len(self._output.items)

    def fail(self, code: str, message: str) -> Fields:
        """The last event of an answer that went wrong on the way, behind the events that were sent."""
        num_events, num_items = self._num_sent
        end = {
            "status": "failed",
            "error": {"code": code, "message": message},
            "output": self._output.items[:num_items],
        }
        return {"type": "response.failed", "response": {**self._empty, **end}, "sequence_number": num_events}

    def _state(self, name: str) -> Fields:
        return {"type": f"response.{name}", "response": dict(self.response)}

    def _numbered(self, events: Iterable[Fields]) -> Iterator[Fields]:
        for event in events:
            yield {**event, "sequence_number": self._num_events}
            self._num_events += 1
