"""How a model file must be received: by an error of ours, or so that everything that is made of it works.

Opening, the model's graph and its tensors, the tokenizer, the chat template, and for some of those that load the
native program. Any exception but the typed ones goes through, and is a fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from roseinfer.checkpoints import Checkpoint, open_checkpoint
from roseinfer.core.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from roseinfer.models import load_model
from roseinfer.quant import format_names, get_format
from roseinfer.text.chat_template import ChatTemplate
from roseinfer.text.loading import load_tokenizer
from roseinfer.text.tokenizer import Tokenizer
from tests.fuzz.steps import step_model

T = TypeVar("T")

OUTCOMES = ["loaded", "stepped", "CheckpointError", "UnsupportedModelError", "TokenizerError", "InvalidRequestError"]
STEPPED_SHARE = 0.5
TOKENIZED_SHARE = 0.5
MAX_RENDER_SECONDS = 0.2
MAX_RENDER_CHARS = 1 << 16

TEXTS = [
    "",
    "hello world",
    " a  ab aaaaaaa\n\n 1234 <s>hell</s><|im_end|><b>",
    "é漢字🙂\u0301\0\ufffd\ud800",
    "x" * 300,
    "A\t'\r\n",
]
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "<s>Hi</s> there 漢"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "42", "tool_call_id": "1"},
    {"role": "user", "content": [{"type": "text", "text": "and?"}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


def receive_model(
    path: Path,
    rng: random.Random,
    *,
    tokenized_share: float = TOKENIZED_SHARE,
    stepped_share: float = STEPPED_SHARE,
) -> str:
    """The outcome: the first refusal, or how far the file came. Tokenizers cost most, so few are looked at here."""
    checkpoint, refusal = attempt(lambda: open_checkpoint(path))
    if checkpoint is None:
        assert str(refusal).startswith(str(path)), f"does not name the file: {refusal}"
        return type(refusal).__name__
    with checkpoint:
        refusals = [attempt(lambda: read_everything(checkpoint))[1]]
        model, refusal = attempt(lambda: load_model(checkpoint))
        refusals.append(refusal)
        if rng.random() < tokenized_share:
            refusals += receive_tokenizer(lambda: load_tokenizer(checkpoint))
        is_stepped = model is not None and rng.random() < stepped_share
        if model is not None and is_stepped:
            step_model(model, rng)
    return outcome_of(refusals, "stepped" if is_stepped else "loaded")


def attempt(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What was made, or the typed refusal."""
    try:
        return make(), None
    except (CheckpointError, InvalidRequestError) as error:
        return None, error


def outcome_of(refusals: Iterable[Exception | None], otherwise: str) -> str:
    return next((type(error).__name__ for error in refusals if error), otherwise)


def read_everything(checkpoint: Checkpoint) -> None:
    assert checkpoint.architecture
    dict(checkpoint.config)
    dict(checkpoint.generation_config)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.name == name
        assert tensor.data.dtype == np.uint8
        assert min(tensor.shape, default=1) > 0
        tensor.data.max()
        if tensor.format in format_names():
            weight_format = get_format(tensor.format)
            num_values = int(np.prod(tensor.shape, dtype=object))
            assert tensor.data.nbytes * weight_format.block_size == num_values * weight_format.block_bytes
            with np.errstate(all="ignore"):
                assert tensor.numpy().shape == tensor.shape
        else:
            assert_refused(tensor.format)


def assert_refused(format_name: str) -> None:
    try:
        get_format(format_name)
    except UnsupportedModelError:
        return
    raise AssertionError(f"{format_name} is not refused")


# -- tokenizers and templates -------------------------------------------------------------------------------------


def receive_tokenizer(load: Callable[[], Tokenizer]) -> list[Exception | None]:
    tokenizer, refusal = attempt(load)
    if tokenizer is None:
        return [refusal]
    refusals = [attempt(lambda text=text: use_tokenizer(tokenizer, text))[1] for text in TEXTS]
    _, refusal = attempt(lambda: read_vocabulary(tokenizer))
    template = tokenizer.chat_template
    if template is None:
        return [*refusals, refusal]
    return [*refusals, refusal, receive_template(template.source, template.tool_source)]


def use_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    for parse_special in (True, False):
        ids = tokenizer.encode(text, parse_special=parse_special)
        assert all(type(i) is int and i >= 0 for i in ids), ids
        # In a tokenizer.json single tokens may have ids far behind the others; these mean nothing.
        assert all(i < tokenizer.vocab_size or not tokenizer.token_bytes(i) for i in ids), ids
        decoded = tokenizer.decode(ids, skip_special=parse_special, continuation=True)
        detokenizer = tokenizer.detokenizer(skip_special=parse_special)
        pieces = [detokenizer.push([token_id]) for token_id in ids]
        assert "".join([*pieces, detokenizer.finish()]) == decoded
    tokenizer.encode_segments([("<s>", True), (text, False), (text, True)])
    tokenizer.min_num_tokens(text)


def read_vocabulary(tokenizer: Tokenizer) -> None:
    for token_id in [*range(min(tokenizer.vocab_size, 500)), tokenizer.vocab_size - 1, tokenizer.vocab_size, -1, 2**40]:
        assert isinstance(tokenizer.token_bytes(token_id), bytes)
        tokenizer.is_special(token_id)
    given = [tokenizer.bos_id, tokenizer.pad_id, *tokenizer.eos_ids]
    assert all(i is None or 0 <= i < tokenizer.vocab_size for i in given), given


@lru_cache(maxsize=64)
def receive_template(source: str, tool_source: str | None = None) -> Exception | None:
    """Renders with tools and without; the first refusal."""
    template = ChatTemplate(
        source,
        tool_source=tool_source,
        bos_token="<s>",
        eos_token="</s>",
        control_names=["<s>", "</s>", "<|im_end|>"],
        max_chars=MAX_RENDER_CHARS,
        max_seconds=MAX_RENDER_SECONDS,
    )
    refusals = [attempt(lambda: _render(template, MESSAGES[:2], None))[1]]
    refusals.append(attempt(lambda: _render(template, MESSAGES, TOOLS))[1])
    return next(filter(None, refusals), None)


def _render(template: ChatTemplate, messages: list[dict[str, object]], tools: list[dict[str, object]] | None) -> None:
    rendered = template.render(messages, tools=tools, variables={"custom": ["x", {"y": 1}]})
    assert len(rendered.text) <= MAX_RENDER_CHARS * 2
    assert "".join(text for text, _ in rendered.segments) == rendered.text
