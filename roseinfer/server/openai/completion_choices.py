"""The choices of a completion, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roseinfer.generation import Generation
from roseinfer.server.openai.logprobs import completion_logprobs, echoed_logprobs, join_logprobs, prompt_logprobs
from roseinfer.server.openai.prompts import has_text_prompts
from roseinfer.server.schemas.completions import CompletionRequest
from roseinfer.text import Tokenizer
from roseinfer.text.output_text import TextDelta


class CompletionChoices:
    """`echoes`: the text of each prompt, if they are to be a part of the answers."""

    def __init__(self, body: CompletionRequest, tokenizer: Tokenizer, echoes: Sequence[str]) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._echoes = echoes

    def first(self, generation: Generation, delta: TextDelta) -> dict[str, Any]:
        """The first part, with all that belongs to the prompt, or the whole."""
        choice = self.next(generation, delta)
        choice["text"] = self._echo(generation) + choice["text"]
        if self._body.return_token_ids:
            choice["prompt_token_ids"] = generation.prompt_ids
        found = generation.prompt_logprobs
        if found is None:
            return choice
        if self._body.echo and self._body.logprobs is not None:
            echoed = echoed_logprobs(
                self._tokenizer,
                generation.prompt_ids,
                found,
                self._body.logprobs,
                skip_special=not has_text_prompts(self._body),  # a text is echoed as it was given
            )
            choice["logprobs"] = join_logprobs(echoed, choice["logprobs"])
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(
                self._tokenizer, generation.prompt_ids, found, self._body.prompt_logprobs
            )
        return choice

    def next(self, generation: Generation, delta: TextDelta) -> dict[str, Any]:
        """A part that follows others."""
        choice: dict[str, Any] = {
            "index": generation.index,
            "text": delta.text,
            "logprobs": self._logprobs(generation, delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _logprobs(self, generation: Generation, delta: TextDelta) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        start = len(self._echo(generation))
        return completion_logprobs(delta.tokens, start, with_top=self._body.logprobs > 0)

    def _echo(self, generation: Generation) -> str:
        return self._echoes[generation.index // self._body.num_choices] if self._echoes else ""
