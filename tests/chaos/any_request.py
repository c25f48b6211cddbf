"""Requests of every kind that the engine takes, drawn from a seed."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec

from roseinfer.core.messages import AddRequest, Grammar

SPLIT = 256  # attention merges its partial sums at multiples of this position
BAD_GRAMMAR = Grammar("regex", "(")


class RequestMaker:
    """Draws requests for one model. Most prompts begin as others do, so that they share cached blocks."""

    def __init__(
        self, rng: random.Random, *, vocab_size: int, eos_id: int, max_prompt_tokens: int, max_new_tokens: int
    ) -> None:
        self._rng = rng
        self._vocab_size = vocab_size
        self._eos_id = eos_id
        self._max_prompt_tokens = max_prompt_tokens
        self._max_new_tokens = max_new_tokens
        self._beginnings = [self._ids(n) for n in (40, max_prompt_tokens)]

    def make(self, count: int) -> list[AddRequest]:
        """`count` requests; up to four in a row are choices of one."""
        requests: list[AddRequest] = []
        while len(requests) < count:
            requests += self._choices(f"r{len(requests)}", self._rng.choice([1, 1, 1, 2, 4]))
        return requests[:count]

    def _choices(self, name: str, n: int) -> list[AddRequest]:
        first = self._request(name)
        return [msgspec.structs.replace(first, request_id=f"{name}.{i}", choice=i) for i in range(n)]

    def _request(self, name: str) -> AddRequest:
        max_tokens = self._rng.randint(1, self._max_new_tokens)
        fields: dict[str, Any] = {**self._sampling(), **self._logprobs(), **self._order()}
        for probability, draw in (
            (0.2, self._penalties),
            (0.15, self._bias),
            (0.1, self._allowed),
            (0.15, self._bad_words),
            (0.15, lambda: {"min_tokens": self._rng.randint(0, max_tokens)}),
            (0.2, lambda: {"grammar": self._grammar()}),
        ):
            if self._rng.random() < probability:
                fields |= draw()
        return AddRequest(
            request_id=name,
            prompt_ids=self._prompt(),
            max_tokens=max_tokens,
            stop_token_ids=[self._eos_id, *self._ids(self._rng.choice([0, 0, 1, 40]))],
            **fields,
        )

    # -- prompts --------------------------------------------------------------------------------------------------

    def _prompt(self) -> list[int]:
        """At and beside the borders of blocks and splits, too."""
        if self._rng.random() < 0.3:
            return self._ids(self._prompt_len())
        beginning = self._rng.choice(self._beginnings)
        shared = beginning[: self._rng.choice([16, 32, 33, 48, len(beginning)])]
        return (shared + self._ids(self._rng.choice([0, 1, 15, 30])))[: self._max_prompt_tokens]

    def _prompt_len(self) -> int:
        length: int = self._rng.choice([1, 15, 16, 17, 31, 64, SPLIT - 1, SPLIT, SPLIT + 1, *range(2, 120, 7)])
        return min(length, self._max_prompt_tokens)

    def _ids(self, count: int) -> list[int]:
        return [self._rng.randrange(self._vocab_size) for _ in range(count)]

    # -- wishes ---------------------------------------------------------------------------------------------------

    def _sampling(self) -> dict[str, Any]:
        return {
            "temperature": self._rng.choice([0.0, 0.0, 0.3, 0.9, 1.5]),
            "top_k": self._rng.choice([0, 0, 1, 5, 40]),
            "top_p": self._rng.choice([1.0, 1.0, 0.9, 0.3]),
            "min_p": self._rng.choice([0.0, 0.0, 0.1]),
            "seed": self._rng.getrandbits(63),
            "choice": 0,
        }

    def _logprobs(self) -> dict[str, Any]:
        return {
            "num_logprobs": self._rng.choice([-1, 0, 1, 3, 20]),
            "num_prompt_logprobs": self._rng.choice([-1, -1, -1, 0, 3]),
        }

    def _order(self) -> dict[str, Any]:
        tenant = self._rng.choice(["", "", "", "a"])
        return {
            "priority": self._rng.choice([0, 0, 0, -1, 1]),
            "tenant": tenant,
            "cache_salt": f"{tenant}/" * bool(tenant) + self._rng.choice(["", "", "", "", "ü"]),
        }

    def _penalties(self) -> dict[str, Any]:
        return {
            "repetition_penalty": self._rng.choice([1.0, 0.8, 1.3]),
            "presence_penalty": self._rng.choice([0.0, -0.5, 1.1]),
            "frequency_penalty": self._rng.choice([0.0, 0.7, 2.0]),
        }

    def _bias(self) -> dict[str, Any]:
        ids = self._ids(self._rng.choice([1, 30]))
        return {"logit_bias": {token_id: self._rng.uniform(-20, 5) for token_id in ids}}

    def _allowed(self) -> dict[str, Any]:
        return {"allowed_token_ids": self._ids(self._vocab_size // 4)}

    def _bad_words(self) -> dict[str, Any]:
        ids = self._ids(61)
        return {"bad_words_ids": [[token_id] for token_id in ids] + [[token_id, ids[0]] for token_id in ids]}

    def _grammar(self) -> Grammar:
        """Each is a new one, as good as certainly; some do not compile."""
        number, low = self._rng.randint(2, 9), self._rng.choice("abcdef")
        word = "".join(self._rng.choice("abcdefgh ") for _ in range(6))
        schema = {"type": "object", "properties": {word: {"type": "integer"}, "b": {"enum": [word, number]}}}
        return self._rng.choice(
            [
                Grammar("regex", f"[{low}-z ]{{{number},20}}({word}|[0-9]+)"),
                Grammar("regex", f"({word}|.{{1,{number}}})+"),
                Grammar("lark", f'start: "{word}"? (/[{low}-z]/ | "{number}" start)'),
                Grammar("json_schema", json.dumps({**schema, "required": ["b"], "additionalProperties": False})),
                Grammar("json_schema", json.dumps({"type": "array", "items": schema, "minItems": number})),
                BAD_GRAMMAR,
            ]
        )
