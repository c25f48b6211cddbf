"""One sequence on its way through an engine, as its reader sees it: ids go out, text comes back."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from roseinfer.core.errors import EngineError, EngineStoppedError, InvalidRequestError
from roseinfer.core.messages import AddRequest, PromptLogprobs, TokenOutput
from roseinfer.core.metrics import Observer, RequestRecord
from roseinfer.text.output_text import OutputText, TextDelta, TextOptions
from roseinfer.text.tokenizer import Tokenizer


class Generation:
    """A request that was checked, ready to be run once.

    `index` is its place among those of one call: prompts in order, each with its choices. `is_scored_only`: only the
    prompt is of interest, and the one token that the engine must be asked for is dropped.
    """

    def __init__(
        self,
        request: AddRequest,
        tokenizer: Tokenizer,
        options: TextOptions,
        observer: Observer,
        *,
        eos_ids: Collection[int] = (),
        index: int = 0,
        is_scored_only: bool = False,
    ) -> None:
        self.request = request
        self.index = index
        self.record = RequestRecord(len(request.prompt_ids), request.max_tokens)
        self.prompt_logprobs: PromptLogprobs | None = None  # there with the first delta, if they were asked for
        self.is_finished = False  # no text comes any more
        self._text = OutputText(tokenizer, options, eos_ids=eos_ids, with_logprobs=request.num_logprobs >= 0)
        self._stops_at_text = bool(options.stop)
        self._observer = observer
        self._is_scored_only = is_scored_only

    @property
    def prompt_ids(self) -> list[int]:
        return self.request.prompt_ids

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing for an engine to do."""
        return self.request.max_tokens == 0

    @property
    def wants_each_step(self) -> bool:
        """Whether its reader finds its end, or has so much to do for each token that it must not come all at once."""
        return self._stops_at_text or self.request.num_logprobs >= 0

    def take(self, outputs: Sequence[TokenOutput]) -> TextDelta:
        """What these outputs make final; what comes behind a stop string counts for nothing.

        Raises EngineError where the request was ended, EngineStoppedError where the engine was, InvalidRequestError
        where the caller is to blame.
        """
        if self.is_finished:
            return TextDelta()
        last = outputs[-1]
        if last.finish_reason in ("error", "abort"):
            raise self._failure(last)
        if self.record.first_token_at is None:
            self._take_first(outputs[0])
        delta = TextDelta(finish_reason="length") if self._is_scored_only else self._text.take(outputs)
        self._count(delta, last.decode_seconds)
        if delta.finish_reason is not None:
            self.record.stop_reason = delta.stop_reason
            self._finish(delta.finish_reason)
        return delta

    def take_nothing(self) -> TextDelta:
        """The only delta of an empty generation."""
        self._finish("length")
        return TextDelta(finish_reason="length")

    def close(self) -> None:
        """To be called when its reader goes away; it is counted as aborted if it was not finished."""
        self._finish("abort")

    def _take_first(self, output: TokenOutput) -> None:
        self.prompt_logprobs = output.prompt_logprobs
        self.record.num_cached_tokens = output.num_cached_tokens
        self.record.queue_seconds = output.queue_seconds
        self.record.prefill_seconds = output.prefill_seconds

    def _count(self, delta: TextDelta, decode_seconds: float) -> None:
        """Times are the reader's own, but the engine's for an answer that was handed over as a whole."""
        record, now = self.record, time.monotonic()
        num_following = delta.num_tokens
        if record.first_token_at is None:
            num_following -= 1
            record.first_token_at = record.last_token_at = now - decode_seconds
            self._observer.on_first_token(record)
        if num_following > 0:
            self._observer.on_tokens(record, num_following, now - (record.last_token_at or now))
        record.last_token_at = now
        record.num_output_tokens += delta.num_tokens

    def _failure(self, output: TokenOutput) -> Exception:
        if output.finish_reason == "abort":
            self._finish("abort")
            return EngineStoppedError(output.error or "the engine was stopped before the request was finished")
        self._finish("error")
        if output.error_param is not None:
            return InvalidRequestError(output.error or "the request is wrong", output.error_param)
        return EngineError(output.error or "the engine failed to finish the request")

    def _finish(self, reason: str) -> None:
        if not self.is_finished:
            self.is_finished = True
            self.record.finish_reason = reason
            self._observer.on_finish(self.record)


def merge(deltas: Sequence[TextDelta]) -> TextDelta:
    """All deltas of one generation as one."""
    if len(deltas) == 1:
        return deltas[0]
    return TextDelta(
        text="".join([delta.text for delta in deltas]),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        tokens=[token for delta in deltas for token in delta.tokens],
        num_tokens=sum(delta.num_tokens for delta in deltas),
        finish_reason=deltas[-1].finish_reason,
        stop_reason=deltas[-1].stop_reason,
    )
