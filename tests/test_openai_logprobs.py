"""Logprobs as OpenAI's routes tell them, against transformers' log-softmax over the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from roseinfer.checkpoints import open_checkpoint
from roseinfer.engine.client import EngineClient
from roseinfer.engine.loader import build_engine
from roseinfer.inference_engine import InferenceEngine
from roseinfer.text import Tokenizer
from roseinfer.text.chat_template import ChatTemplate
from roseinfer.text.vocabulary import Vocabulary
from tests.harness import log_softmax
from tests.server.byte_server import TEMPLATE, PlainByteEncoder
from tests.server.live import serve
from tests.server.replies import read_events
from tests.tiny_models import EOS_ID, VOCAB_SIZE, TinyModel

MAX_DIFFERENCE = 1e-3
PROMPT = "Once upon a time, 5 € were 😀 money."
NUM_TOP = 5
SAMPLED = {"max_tokens": 48, "seed": 4, "return_token_ids": True, "ignore_eos": True}


@dataclass(frozen=True)
class Judge:
    """A server, and the model that knows better."""

    client: httpx.Client
    tiny: TinyModel

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """[T - 1, vocab]: row i is of what follows the first i + 1 ids."""
        return log_softmax(self.tiny.logits(ids))[:-1]

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        reply = self.client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def complete(self, **body: Any) -> Any:
        [choice] = self.ask("/v1/completions", {"prompt": PROMPT, **body})["choices"]
        return choice


def token_bytes(token_id: int) -> bytes:
    """Bytes, and some words behind them."""
    return bytes([token_id]) if token_id < 256 else f" word{token_id} ".encode()


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(
        PlainByteEncoder(),
        Vocabulary(VOCAB_SIZE, token_bytes, special_ids=(EOS_ID,)),
        bos_id=None,
        eos_ids=(EOS_ID,),
        pad_id=None,
        prefix_ids=(),
        add_prefix=False,
        strip_space=False,
        chat_template=ChatTemplate(TEMPLATE),
    )


@pytest.fixture(scope="module")
def judge(tiny_model: Any) -> Iterator[Judge]:
    tiny = tiny_model("llama")
    with open_checkpoint(tiny.path) as checkpoint:
        engine, info = build_engine(checkpoint, dtype="float32", num_threads=1)
    client = EngineClient(engine, (EOS_ID,))
    client.start()
    with (
        InferenceEngine.from_parts(client, tiny_tokenizer(), info) as door,
        serve(door) as url,
        httpx.Client(base_url=url, timeout=30) as session,
    ):
        yield Judge(session, tiny)


def assert_close(told: list[float], true: np.ndarray) -> None:
    np.testing.assert_allclose(told, true, rtol=0, atol=MAX_DIFFERENCE)


def assert_likeliest(told: list[list[float]], true: np.ndarray) -> None:
    """Each of `told` in descending order."""
    for logprobs, row in zip(told, true, strict=True):
        assert_close(logprobs, np.sort(row)[::-1][: len(logprobs)])
        assert np.exp(logprobs).sum() <= 1 + 1e-5


def assert_offsets(text: str, tokens: list[str], offsets: list[int]) -> None:
    """Every whole token stands where it is said to."""
    assert offsets == sorted(offsets)
    whole = [(token, offset) for token, offset in zip(tokens, offsets, strict=True) if "\ufffd" not in token]
    assert len(whole) > len(tokens) / 4
    for token, offset in whole:
        assert text[offset : offset + len(token)] in (token, "")  # a special token is no part of the text


@pytest.mark.parametrize("temperature", [0, 1])
def test_chats(judge: Judge, temperature: float) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], **SAMPLED, "temperature": temperature}
    reply = judge.ask("/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": NUM_TOP})
    [choice] = reply["choices"]
    prompt, written, entries = reply["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["content"]
    true = judge.logprobs(prompt + written)[len(prompt) - 1 :]
    assert_close([entry["logprob"] for entry in entries], true[np.arange(len(written)), written])
    assert_likeliest([[top["logprob"] for top in entry["top_logprobs"]] for entry in entries], true)
    assert [len(entry["top_logprobs"]) for entry in entries] == [NUM_TOP] * 48
    joined = bytes(byte for entry in entries for byte in entry["bytes"])
    assert joined.decode("utf-8", "replace") == choice["message"]["content"]
    for entry in entries:
        assert all(
            bytes(top["bytes"]).decode("utf-8", "replace") in (top["token"], "") for top in entry["top_logprobs"]
        )


def test_a_chats_stream(judge: Judge) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"messages": messages, **SAMPLED, "logprobs": True, "top_logprobs": NUM_TOP}
    whole = judge.ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    chunks = read_events(judge.client.post("/v1/chat/completions", json={**body, "stream": True}).text)
    parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"]]
    assert [entry for part in parts if part for entry in part["content"]] == whole


@pytest.mark.parametrize("temperature", [0, 1])
def test_completions(judge: Judge, temperature: float) -> None:
    choice = judge.complete(**SAMPLED, temperature=temperature, logprobs=NUM_TOP)
    prompt, written, told = choice["prompt_token_ids"], choice["token_ids"], choice["logprobs"]
    true = judge.logprobs(prompt + written)[len(prompt) - 1 :]
    own = true[np.arange(len(written)), written]
    assert_close(told["token_logprobs"], own)
    for top, name, logprob, row in zip(told["top_logprobs"], told["tokens"], own, true, strict=True):
        assert abs(max(top.values()) - row.max()) <= MAX_DIFFERENCE
        assert abs(top[name] - logprob) <= MAX_DIFFERENCE or "\ufffd" in name  # bytes that look alike share a place
    assert_offsets(choice["text"], told["tokens"], told["text_offset"])


@pytest.mark.parametrize("max_tokens", [0, 8])
def test_an_echo(judge: Judge, max_tokens: int) -> None:
    choice = judge.complete(**{**SAMPLED, "max_tokens": max_tokens}, echo=True, logprobs=NUM_TOP)
    ids, told = choice["prompt_token_ids"] + choice["token_ids"], choice["logprobs"]
    true = judge.logprobs(ids)
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert_close(told["token_logprobs"][1:], true[np.arange(len(ids) - 1), ids[1:]])
    assert_close([max(top.values()) for top in told["top_logprobs"][1:]], true.max(axis=1))
    assert choice["text"].startswith(PROMPT)
    assert_offsets(choice["text"], told["tokens"], told["text_offset"])


@pytest.mark.parametrize("num_top", [0, NUM_TOP, 20])
def test_prompts(judge: Judge, num_top: int) -> None:
    choice = judge.complete(**SAMPLED, prompt_logprobs=num_top)
    first, *places = choice["prompt_logprobs"]
    ids = choice["prompt_token_ids"]
    true = judge.logprobs(ids)
    assert first is None
    own = [place[str(token_id)]["logprob"] for place, token_id in zip(places, ids[1:], strict=True)]
    assert_close(own, true[np.arange(len(places)), ids[1:]])
    ranked = [sorted((each for each in place.values() if each["rank"]), key=_rank) for place in places]
    assert [[each["rank"] for each in place] for place in ranked] == [[*range(1, num_top + 1)]] * len(places)
    assert_likeliest([[each["logprob"] for each in place] for place in ranked], true)


def _rank(place: dict[str, Any]) -> int:
    return int(place["rank"])


def test_logprobs_are_those_before_sampling(judge: Judge) -> None:
    """What forbids tokens or changes their odds is not in them."""
    biased = judge.complete(**SAMPLED, logprobs=1, temperature=2, logit_bias={"65": 30}, top_k=3)
    prompt, written = biased["prompt_token_ids"], biased["token_ids"]
    true = judge.logprobs(prompt + written)[len(prompt) - 1 :]
    assert_close(biased["logprobs"]["token_logprobs"], true[np.arange(len(written)), written])
    assert written.count(65) > 40
