"""What a server gets to see in the course of a day, in seconds: every route, every way to ask, and every way to err."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roseinfer.bench.http_client import HttpClient
from tests.chaos.disconnects import PHASES, Victim

MODEL = "soak"  # as the server has to call it
MAX_TOKENS = 8
WORDS = (
    "river",
    "stone",
    "winter",
    "lamp",
    "garden",
    "seven",
    "letter",
    "quiet",
    "morning",
    "bread",
    "north",
    "window",
)

Body = dict[str, Any]
Drawn = tuple[str, Body | None]  # a path and what is posted there; None = it is got


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """`status` is what it must be answered with; a `victim`'s caller does not wait for the answer."""

    kind: str
    content: bytes
    status: int = 200
    victim: Victim | None = None


def soak_requests(client: HttpClient, seed: int) -> Iterator[SoakRequest]:
    """Without end; the same ones for the same seed."""
    rng = random.Random(seed)
    kinds, weights = zip(*((draw, weight) for draw, weight in SOUND.items()), strict=True)
    while True:
        chance = rng.random()
        path, body = rng.choices(kinds, weights)[0](rng)
        if chance < 0.1:
            yield _wrong(client, rng)
        elif chance < 0.2:
            yield _deserted(client.encode(path, body), rng)
        else:
            yield SoakRequest(_kind(path, body), client.encode(path, body))


def _kind(path: str, body: Body | None) -> str:
    return path + " stream" * bool(body and body.get("stream"))


# -- sound ones -------------------------------------------------------------------------------------------------------


def _generate(rng: random.Random) -> Drawn:
    body = {"prompt": _text(rng), "max_new_tokens": _length(rng), "do_sample": rng.random() < 0.5, "top_k": 40}
    return "/generate", {**body, **_streamed(rng)}


def _completion(rng: random.Random) -> Drawn:
    return "/v1/completions", {"prompt": _text(rng), **_sampling(rng), **_streamed(rng)}


def _scored(rng: random.Random) -> Drawn:
    wishes: Body = rng.choice(
        [{"logprobs": 5, **_streamed(rng)}, {"prompt_logprobs": 2}, {"logprobs": 0, "echo": True}]
    )
    return "/v1/completions", {"prompt": _text(rng), **_sampling(rng), **wishes}


def _choices(rng: random.Random) -> Drawn:
    body = {"prompt": [_text(rng), _text(rng)], "n": 2, "return_token_ids": True}
    return "/v1/completions", {**body, **_sampling(rng), **_streamed(rng)}


def _edited(rng: random.Random) -> Drawn:
    edits = {
        "logit_bias": {str(rng.randrange(1000)): rng.uniform(-50, 5) for _ in range(20)},
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "bad_words": [_word(rng), _word(rng)],
        "min_tokens": 1,
        "stop": [_word(rng), "\n\n"],
        "priority": rng.randrange(3),
        "cache_salt": _word(rng),
    }
    return "/v1/completions", {"prompt": _text(rng), **_sampling(rng), **edits, **_streamed(rng)}


def _constrained(rng: random.Random) -> Drawn:
    body = {"prompt": _text(rng), "structured_outputs": _grammar(rng), **_sampling(rng), **_streamed(rng)}
    return "/v1/completions", body


def _chat(rng: random.Random) -> Drawn:
    wishes: Body = rng.choice([{}, {"logprobs": True, "top_logprobs": 3}, {"n": 2}])
    return "/v1/chat/completions", {**_messages(rng), **_sampling(rng), **wishes, **_streamed(rng)}


def _chat_as_json(rng: random.Random) -> Drawn:
    answer = {"type": "json_schema", "json_schema": {"name": "thing", "schema": _schema(rng)}}
    return "/v1/chat/completions", {**_messages(rng), "response_format": answer, **_sampling(rng), **_streamed(rng)}


def _chat_with_tools(rng: random.Random) -> Drawn:
    tool = {"type": "function", "function": {"name": f"tool_{rng.randrange(10**6)}", "parameters": _schema(rng)}}
    # The small models' templates know no tools, so that these are checked and then left out.
    return "/v1/chat/completions", {**_messages(rng), "tools": [tool], "tool_choice": "none", **_sampling(rng)}


def _rendered(rng: random.Random) -> Drawn:
    return "/v1/chat/completions/render", _messages(rng)


def _message(rng: random.Random) -> Drawn:
    return "/v1/messages", {**_messages(rng), "model": MODEL, "max_tokens": _length(rng), **_streamed(rng)}


def _message_count(rng: random.Random) -> Drawn:
    return "/v1/messages/count_tokens", {**_messages(rng), "model": MODEL}


def _response(rng: random.Random) -> Drawn:
    return "/v1/responses", {"input": _text(rng), "max_output_tokens": 16, "store": False, **_streamed(rng)}


def _tokens(rng: random.Random) -> Drawn:
    return "/tokenize", {
        "prompt": " ".join(_text(rng) for _ in range(rng.choice([1, 1, 20]))),
        "return_token_strs": True,
    }


def _detokenised(rng: random.Random) -> Drawn:
    return "/detokenize", {"tokens": [rng.randrange(1000) for _ in range(rng.randint(1, 50))]}


def _got(rng: random.Random) -> Drawn:
    paths = ("/health", "/health/live", "/health/ready", "/v1/models", "/metrics", "/openapi.json", "/docs")
    return rng.choice(paths), None


SOUND: Mapping[Callable[[random.Random], Drawn], float] = {
    _generate: 3,
    _completion: 3,
    _scored: 2,
    _choices: 1,
    _edited: 2,
    _constrained: 1,
    _chat: 3,
    _chat_as_json: 1,
    _chat_with_tools: 1,
    _rendered: 1,
    _message: 2,
    _message_count: 1,
    _response: 2,
    _tokens: 2,
    _detokenised: 1,
    _got: 2,
}

# -- others -----------------------------------------------------------------------------------------------------------


def _wrong(client: HttpClient, rng: random.Random) -> SoakRequest:
    """A caller's mistake: 4xx, and no work for the engine."""
    mistakes: list[tuple[str, Body, int]] = [
        ("/v1/completions", {"prompt": _text(rng), "max_tokens": -1}, 400),
        ("/v1/completions", {"prompt": _text(rng), "temperature": "hot"}, 400),
        ("/v1/completions", {"prompt": _text(rng), "n": 10**6}, 400),
        ("/v1/completions", {"prompt": [[2**31 - 1]]}, 400),
        ("/v1/completions", {"prompt": "many words " * 9000}, 400),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"1": 1e300}}, 400),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"regex": "(" + _word(rng)}}, 400),
        ("/v1/chat/completions", {"messages": [{"role": _word(rng), "content": "a"}]}, 400),
        ("/v1/chat/completions", {**_messages(rng), "response_format": {"type": _word(rng)}}, 400),
        ("/v1/messages", {**_messages(rng), "max_tokens": 0}, 400),
        ("/v1/responses", {"input": {"not": _word(rng)}}, 400),
        ("/detokenize", {"tokens": [10**8]}, 400),
        (f"/{_word(rng)}/{rng.randrange(10**6)}", {}, 404),
    ]
    path, body, status = rng.choice(mistakes)
    content = client.encode(path, body)
    if status == 400 and rng.random() < 0.2:
        content = content[:-1] + b"x"  # of the same length, and no JSON
    return SoakRequest("mistake", content, status)


def _deserted(content: bytes, rng: random.Random) -> SoakRequest:
    """Its caller hangs up: at any byte of the request, before the answer, or in the middle of it."""
    phase = rng.choice(PHASES)
    head = content.index(b"\r\n\r\n") + 4
    ends = {"connecting": 0, "half head": rng.randrange(1, head), "half body": rng.randrange(head, len(content) + 1)}
    victim = Victim(
        content,
        phase,
        is_reset=rng.random() < 0.5,
        num_sent=ends.get(phase, len(content)),
        num_pieces=int(phase in ("first token", "mid stream")),  # of a short answer there may be no second one
        delay=rng.random() * (0.03 if phase != "first token" else 0),
    )
    return SoakRequest("hung up", content, victim=victim)


# -- parts ------------------------------------------------------------------------------------------------------------


def _word(rng: random.Random) -> str:
    return f"{rng.choice(WORDS)}{rng.randrange(10**4)}"


def _text(rng: random.Random) -> str:
    """Some begin alike."""
    shared = rng.choice(["", "Once upon a time there was a town by the sea where nobody had ever seen a train. "])
    return shared + " ".join(_word(rng) for _ in range(rng.randint(1, 8)))


def _messages(rng: random.Random) -> Body:
    return {"messages": [{"role": "user", "content": _text(rng)}]}


def _length(rng: random.Random) -> int:
    return rng.randint(1, MAX_TOKENS)


def _sampling(rng: random.Random) -> Body:
    sampled = {"temperature": 0.9, "seed": rng.randrange(2**31), **rng.choice([{"top_p": 0.9}, {"top_k": 40}, {}])}
    return {"max_tokens": _length(rng), **rng.choice([{"temperature": 0}, sampled])}


def _streamed(rng: random.Random) -> Body:
    return {"stream": rng.random() < 0.5}


def _schema(rng: random.Random) -> Body:
    """Ever another one."""
    properties = {_word(rng): {"type": kind} for kind in ("integer", "string", "boolean")}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _grammar(rng: random.Random) -> Body:
    """Ever another one."""
    return rng.choice(
        [
            {"json": json.dumps(_schema(rng))},
            {"regex": f"{_word(rng)}[a-z]{{1,{rng.randint(2, 9)}}}"},
            {"choice": [_word(rng), _word(rng)]},
            {"grammar": f'start: "{_word(rng)}" /[0-9]+/'},
        ]
    )
