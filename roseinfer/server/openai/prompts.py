"""Prompts of completions, in each of their four forms → token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roseinfer.core.errors import InvalidRequestError
from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.schemas.completions import CompletionRequest
from roseinfer.text import Tokenizer


def prompt_ids(engine: InferenceEngine, body: CompletionRequest) -> list[list[int]]:
    """One list per prompt. Raises InvalidRequestError, ContextLengthError for text that cannot fit."""
    prompts = _prompts_of(body.prompt)
    add_bos = None if body.add_special_tokens in (None, True) else False
    return [_encode(engine, prompt, add_bos) for prompt in prompts]


def num_prompts(body: CompletionRequest) -> int:
    return len(_prompts_of(body.prompt))


def num_chars(body: CompletionRequest) -> int:
    """Of text to tokenise, or of ids to check for each choice."""
    return sum(len(prompt) for prompt in _prompts_of(body.prompt)) * body.num_choices


def prompt_texts(body: CompletionRequest, tokenizer: Tokenizer) -> list[str]:
    """The prompts as an echo shows them."""
    prompts = _prompts_of(body.prompt)
    return [each if isinstance(each, str) else tokenizer.decode(each, continuation=True) for each in prompts]


def has_text_prompts(body: CompletionRequest) -> bool:
    """Rather than prompts of ids."""
    return isinstance(_prompts_of(body.prompt)[0], str)


def check_count(engine: InferenceEngine, num_prompts: int, num_choices: int) -> None:
    """Raises InvalidRequestError for more sequences than are ever taken at once, before any work is done on them."""
    count, limit = num_prompts * num_choices, engine.client.max_live
    if count > limit:
        param = "n" if num_choices > 1 else "prompt"
        raise InvalidRequestError(f"{count} sequences were asked for, this server takes {limit} at once", param)


def _prompts_of(prompt: Any) -> Sequence[str | list[int]]:
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    prompts: list[str | list[int]] = prompt
    return prompts


def _encode(engine: InferenceEngine, prompt: str | list[int], add_bos: bool | None) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    engine.check_length(prompt)
    ids = engine.tokenizer.encode(prompt, add_bos=add_bos)
    return ids or engine.tokenizer.encode_prompt("")
