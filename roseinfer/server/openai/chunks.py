"""The chunks of one stream: what is the same in all of them is encoded once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from roseinfer.generation import Generation
from roseinfer.server.dependencies import engine_of, fingerprint_in
from roseinfer.server.json_pieces import encode_json
from roseinfer.server.openai.accounting import timings, usage_of
from roseinfer.server.schemas.sampling import SamplingFields


def reply_head(request: Request, id_prefix: str, kind: str) -> dict[str, Any]:
    """What every reply and chunk begins with."""
    return {
        "id": f"{id_prefix}-{request.scope['state']['request_id']}",
        "object": kind,
        "created": int(time.time()),
        "model": engine_of(request).name,
        "system_fingerprint": fingerprint_in(request),
    }


def reply_fields(body: SamplingFields, generations: Sequence[Generation]) -> dict[str, Any]:
    """What a whole reply ends with."""
    fields = {"usage": usage_of(generations, body.num_choices), "timings": timings(generations)}
    warnings = body.warnings()
    return {**fields, "warnings": warnings} if warnings else fields


class Chunks:
    """`generations` are those whose usage the stream tells, if the body asks for it."""

    def __init__(self, head: dict[str, Any], body: SamplingFields, generations: Sequence[Generation]) -> None:
        options = body.stream_options
        self._body = body
        self._generations = generations
        self._num_unfinished = len(generations)
        self._is_counting = bool(options and options.continuous_usage_stats)
        self._is_first = True
        self._head = b"data: " + encode_json(head)[:-1]
        self.start = self._head + b',"choices":['
        self.end = b'],"usage":null}\n\n' if body.wants_usage else b"]}\n\n"

    @property
    def is_plain(self) -> bool:
        """Whether the next chunk is `start`, the choice and `end`, and nothing else."""
        return not self._is_first and not self._is_counting

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One with a part of a choice. The first tells the warnings, the one that ends the last choice the timings."""
        fields: dict[str, Any] = {}
        if self._is_first and (warnings := self._body.warnings()):
            fields["warnings"] = warnings
        self._is_first = False
        if choice["finish_reason"] is not None:
            self._num_unfinished -= 1
            if not self._num_unfinished:
                fields["timings"] = timings(self._generations)
        if self._is_counting:
            fields["usage"] = usage_of(self._generations, self._body.num_choices)
        elif self._body.wants_usage:
            fields["usage"] = None
        return self._write({"choices": [choice], **fields})

    def last(self) -> bytes:
        """What follows all choices: the usage, if it was asked for."""
        if not self._body.wants_usage:
            return b""
        return self._write({"choices": [], "usage": usage_of(self._generations, self._body.num_choices)})

    def _write(self, fields: dict[str, Any]) -> bytes:
        return self._head + b"," + encode_json(fields)[1:] + b"\n\n"
