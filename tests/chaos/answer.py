"""What came back for one request, put together over all engines that worked on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from roseinfer.core.messages import PromptLogprobs, TokenOutput


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)  # distinct ones; a second is a difference
    end: tuple[Any, ...] = ()

    def take(self, output: TokenOutput) -> None:
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.top_ids += output.top_ids
        self.top_logprobs += output.top_logprobs
        if output.prompt_logprobs is not None and output.prompt_logprobs not in self.prompt_logprobs:
            self.prompt_logprobs.append(output.prompt_logprobs)
        if output.finish_reason is not None:
            self.end = (output.finish_reason, output.stop_token_id, output.error, output.error_param)

    @property
    def is_finished(self) -> bool:
        return bool(self.end)

    @property
    def is_aborted(self) -> bool:
        return self.end[:1] == ("abort",)

    def difference(self, alone: Answer) -> str | None:
        """The first one from what the request is answered alone. An aborted answer may stop anywhere.

        An error that is not the caller's is one, too, though both runs have it.
        """
        return next(self._differences(alone), None)

    def _differences(self, alone: Answer) -> Iterator[str]:
        for answer in (self, alone):
            if answer.end[0] == "error" and answer.end[3] is None:
                yield f"fails: {answer.end[2]}"
        for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
            own, expected = getattr(self, name), getattr(alone, name)
            yield from _differing(name, own, expected[: len(own)] if self.is_aborted else expected)
        if not self.is_aborted:
            yield from _differing("end", self.end, alone.end)
        if self.prompt_logprobs or not self.is_aborted:
            yield from _differing("prompt_logprobs", self.prompt_logprobs, alone.prompt_logprobs)


def _differing(name: str, own: Sequence[object], expected: Sequence[object]) -> Iterator[str]:
    for i, (one, other) in enumerate(zip_longest(own, expected)):
        if one != other:
            yield f"{name}[{i}] is {one!r:.400}, alone {other!r:.400}"
