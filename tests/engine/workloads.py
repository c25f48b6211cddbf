"""Requests, and schedules that must make no difference to them."""

from __future__ import annotations

from typing import Any

import pytest

from roseinfer.core.messages import AddRequest
from tests.fake_engine import make_request
from tests.fake_grammars import hashed_grammar

SHARED = [7, 3, 9, 1, 4, 4, 8, 2, 6, 5, 11, 13, 12, 10, 15, 14, 17, 16, 19, 18]  # five blocks of four


def workload() -> list[AddRequest]:
    """Shared and own prefixes, prompts at and beside block borders, greedy and sampled, with and without stops."""
    requests = []
    for i in range(12):
        prompt = (SHARED if i % 3 else SHARED[::-1])[: 3 + 2 * i] + [20 + i] * (i % 5)
        requests.append(
            make_request(
                f"r{i}",
                prompt,
                max_tokens=4 + 3 * i,
                temperature=0.0 if i % 2 else 1.0,
                seed=i,
                choice=i % 3,
                stop_token_ids=[i, i + 20],
                num_logprobs=i % 4 - 1,
            )
        )
    return requests


# One wish each, as every wish alone must be kept, and all of them at once.
WISHES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 2.0, "frequency_penalty": -0.25, "max_tokens": 30},
    "frequency": {"frequency_penalty": 2.0, "temperature": 1.0},
    "bias": {"logit_bias": {3: 4.0, 5: -100.0, 9: 2.5}},
    "min-tokens": {"min_tokens": 9, "stop_token_ids": list(range(25))},
    "bad-words": {"bad_words_ids": [[i] for i in range(20)] + [[i, j] for i in range(50) for j in (20, 21)]},
    "allowed": {"allowed_token_ids": list(range(0, 50, 7))},
    "grammar": {"grammar": hashed_grammar(9), "temperature": 1.0},
    "grammar-and-eos": {"grammar": hashed_grammar(30), "stop_token_ids": [1, 2, 3, 4, 5, 6], "min_tokens": 4},
    "prompt-logprobs": {"num_prompt_logprobs": 2},
    "own-prompt-logprobs": {"num_prompt_logprobs": 0, "num_logprobs": 0},
    "last": {"priority": 5},
    "salted": {"cache_salt": "ü", "num_prompt_logprobs": 1, "priority": -2},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {7: 3.0},
        "min_tokens": 3,
        "stop_token_ids": [4, 7, 30],
        "bad_words_ids": [[8], [7, 9]],
        "allowed_token_ids": list(range(45)),
        "grammar": hashed_grammar(14),
        "num_prompt_logprobs": 3,
        "num_logprobs": 3,
        "priority": -1,
    },
}


def wishes() -> list[AddRequest]:
    return [
        make_request(
            f"r{i}-{name}",
            (SHARED if i % 3 else SHARED[::-1])[: 6 + i] + [20 + i] * (i % 4),
            **{"max_tokens": 12, "seed": i, "num_logprobs": i % 4 - 1, **fields},
        )
        for i, (name, fields) in enumerate(WISHES.items())
    ]


SCHEDULES = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_running": 1}, id="one-by-one"),
        pytest.param({"max_batch_tokens": 1, "max_running": 12}, id="one-token-per-step"),
        pytest.param({"max_chunk_tokens": 3}, id="chunks-beside-borders"),
        pytest.param({"max_chunk_tokens": 4}, id="chunks-at-borders"),
        pytest.param({"max_batch_tokens": 13, "max_running": 12}, id="mixed-chunks"),
        pytest.param({"use_prefix_cache": False}, id="uncached"),
        pytest.param({"num_blocks": 19, "max_running": 12}, id="preempted"),
        pytest.param({"num_blocks": 19, "max_running": 12, "use_prefix_cache": False}, id="preempted-uncached"),
        pytest.param({"num_blocks": 19, "max_running": 12, "max_chunk_tokens": 5}, id="preempted-chunked"),
    ],
)
