"""Requests of every kind that a client may send, each of them with one right answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple


class ChaosRequest(NamedTuple):
    path: str
    body: dict[str, Any]

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))


Body = dict[str, Any]

SUBJECTS = ("the sea", "a small town", "bread", "an old clock", "rivers", "two brothers", "winter", "the moon")
OPENINGS = (
    "Once upon a time there was",
    "The most important thing about",
    "Here is a short list of facts about",
    "A letter to a friend about",
    "Nobody in the village had ever heard of",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "size": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
JSON_ANSWER = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}


def mixed_requests(
    count: int, seed: int, *, max_tokens: int = 96, is_streamed: bool = True, is_portable: bool = False
) -> list[ChaosRequest]:
    """`count` of them, no two alike, kind by kind: greedy, seeded, penalties, n=2, logprobs, JSON schema, stop strings.

    Answers of different lengths, up to `max_tokens`, most of them longer than the model wants. `is_portable` keeps to
    what other servers know as well.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in KINDS if not is_portable or kind in PORTABLE]
    return [_request(kinds[i % len(kinds)], rng, max_tokens, is_streamed) for i in range(count)]


def _request(
    make: Callable[[random.Random, str], ChaosRequest], rng: random.Random, n: int, stream: bool
) -> ChaosRequest:
    prompt = f"{rng.choice(OPENINGS)} {rng.choice(SUBJECTS)} number {rng.randrange(10**6)}, and"
    path, body = make(rng, prompt)
    length = rng.randint(max(1, n // 2), n)
    if path == "/generate":
        return ChaosRequest(path, {**body, "max_new_tokens": length, "stream": stream})
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return ChaosRequest(path, {**body, "max_tokens": length, "stream": stream, **options})


# -- kinds ------------------------------------------------------------------------------------------------------------


def _greedy(rng: random.Random, prompt: str) -> ChaosRequest:
    return _completion(prompt, temperature=0, return_token_ids=True)


def _seeded(rng: random.Random, prompt: str) -> ChaosRequest:
    return _completion(prompt, **_sampling(rng), top_p=0.9, return_token_ids=True)


def _penalised(rng: random.Random, prompt: str) -> ChaosRequest:
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.7, "repetition_penalty": 1.1}
    return _completion(prompt, **_sampling(rng), **penalties, logit_bias={"28": -5.0, "30": 1.5})


def _two_choices(rng: random.Random, prompt: str) -> ChaosRequest:
    return _completion(prompt, **_sampling(rng), n=2, logprobs=1, return_token_ids=True)


def _with_logprobs(rng: random.Random, prompt: str) -> ChaosRequest:
    return _completion(prompt, **_sampling(rng), logprobs=5, echo=rng.random() < 0.5)


def _json(rng: random.Random, prompt: str) -> ChaosRequest:
    return _chat(f"Describe this as JSON: {prompt}", **_sampling(rng), response_format=JSON_ANSWER)


def _stopped(rng: random.Random, prompt: str) -> ChaosRequest:
    return _completion(prompt, **_sampling(rng), stop=["\n\n", " the end", " because"])


def _chatting(rng: random.Random, prompt: str) -> ChaosRequest:
    return _chat(prompt, **_sampling(rng), logprobs=True, top_logprobs=2, stop=[" However"])


def _plain_chat(rng: random.Random, prompt: str) -> ChaosRequest:
    return _chat(prompt, temperature=0)


def _generating(rng: random.Random, prompt: str) -> ChaosRequest:
    return ChaosRequest("/generate", {"prompt": prompt, "do_sample": True, "top_k": 40, **_sampling(rng)})


def _completion(prompt: str, **fields: Any) -> ChaosRequest:
    return ChaosRequest("/v1/completions", {"prompt": prompt, **fields})


def _chat(prompt: str, **fields: Any) -> ChaosRequest:
    return ChaosRequest("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}], **fields})


def _sampling(rng: random.Random) -> Body:
    return {"temperature": rng.choice([0.7, 1.0, 1.2]), "seed": rng.randrange(2**31)}


PORTABLE = (_greedy, _seeded, _json, _stopped, _plain_chat)
KINDS = (*PORTABLE, _penalised, _two_choices, _with_logprobs, _chatting, _generating)
