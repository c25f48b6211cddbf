"""Prompts of a wanted number of tokens: random words, as token ids where a server takes them, otherwise as text.

Every prompt is drawn anew from the random generator it is given, so prompts differ unless the generators are alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from roseinfer.bench.workloads import Workload

if TYPE_CHECKING:
    from roseinfer.text import Tokenizer

# Each is one token behind a space in the vocabularies of GPT-2, Llama, Qwen and Gemma, and far from any special one.
_TEXT = """
about above across after again air all along also always among animal another answer any area around art away back
ball bank base became because bed before began behind being best better between big bird black blue board boat body
book both box boy bring build business but call came car care carry case catch cause center certain change check child
choose city class clear close cold color come common company complete control cook cool country course cover cut dark
day deep develop did different direct door down draw drive dry during each early earth east easy eat end enough even
evening ever every example eye face fact fall family far farm fast father feel few field figure final find fine fire
first fish five fly follow food foot force form found four free friend front full game gave general girl give go gold
good got government great green ground group grow half hand happen hard head hear heart heat help high hill history
hold home horse hot hour house human hundred idea important inside interest island kind king know land language large
last late laugh law learn leave left less letter level life light line list listen little live
"""
WORDS = tuple(_TEXT.split())

MAX_FITS = 64  # rounds of counting and correcting; words of one token each need two

Count = Callable[[str], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Prompt:
    content: list[int] | str
    num_tokens: int | None  # as far as this side knows; None = only the server does


class PromptSource(Protocol):
    description: str  # what prompts are and who counted their tokens

    async def make(self, workload: Workload, rng: Random) -> list[Prompt]:
        """One prompt per request of the workload."""


class IdPrompts:
    """Token ids drawn from `pool`, behind the ids that a text of the model starts with (BOS), if any."""

    def __init__(self, pool: Sequence[int], start_ids: Sequence[int] = (), *, source: str) -> None:
        self.description = f"token ids {source}"
        self._pool = pool
        self._start_ids = list(start_ids)

    @property
    def every_id(self) -> list[int]:
        return [*self._start_ids, *self._pool]

    async def make(self, workload: Workload, rng: Random) -> list[Prompt]:
        shared = self._extend([], workload.shared_prefix_len, rng)
        prompts = (self._extend(shared, workload.input_len, rng) for _ in range(workload.num_requests))
        return [Prompt(ids, len(ids)) for ids in prompts]

    def _extend(self, start: list[int], length: int, rng: Random) -> list[int]:
        return [*(start or self._start_ids), *rng.choices(self._pool, k=length)][:length]


class TextPrompts:
    """Words, as many as `count` wants to see. Without `is_exact` the server's own count is the one to believe."""

    def __init__(self, count: Count, *, source: str, is_exact: bool = True) -> None:
        self.description = f"text, {source}"
        self._count = count
        self._is_exact = is_exact

    async def make(self, workload: Workload, rng: Random) -> list[Prompt]:
        shared: list[str] = []
        if workload.shared_prefix_len:
            shared, _ = await self._extended([], workload.shared_prefix_len, rng)
        return [await self._prompt(shared, workload.input_len, rng) for _ in range(workload.num_requests)]

    async def _prompt(self, shared: list[str], length: int, rng: Random) -> Prompt:
        words, num_tokens = await self._extended(shared, length, rng)
        return Prompt(" ".join(words), num_tokens if self._is_exact else None)

    async def _extended(self, start: list[str], length: int, rng: Random) -> tuple[list[str], int]:
        """`start` and one word or more behind it; and their tokens, which are `length` unless no words can have it."""
        own = rng.choices(WORDS, k=max(1, length - len(start)))
        num_tokens = await self._count(" ".join([*start, *own]))
        for _ in range(MAX_FITS):
            if num_tokens == length:
                break
            tokens_per_word = num_tokens / (len(start) + len(own))
            _correct(own, round((length - num_tokens) / tokens_per_word), rng)
            num_tokens = await self._count(" ".join([*start, *own]))
        return [*start, *own], num_tokens


def _correct(words: list[str], num_missing: int, rng: Random) -> None:
    """Adds words, takes some away, or changes one where the difference is less than a word."""
    if num_missing < 0:
        del words[max(1, len(words) + num_missing) :]
    elif num_missing > 0:
        words += rng.choices(WORDS, k=num_missing)
    else:
        words[rng.randrange(len(words))] = rng.choice(WORDS)


def tokenizer_ids(tokenizer: Tokenizer) -> IdPrompts:
    pool = tokenizer.encode(" ".join(WORDS), add_bos=False)
    return IdPrompts(pool, tokenizer.encode(""), source="of the tokenizer here")


def tokenizer_count(tokenizer: Tokenizer) -> Count:
    """Counts as a server of the same model does, BOS included."""

    async def count(text: str) -> int:
        return len(tokenizer.encode_prompt(text))

    return count


def estimated_count(num_probe_tokens: int) -> Count:
    """A count for a server that only tells in `usage` what a prompt was: `num_probe_tokens` for all WORDS together."""
    extra = num_probe_tokens - len(WORDS)
    is_a_token_each = extra in (0, 1)  # 1: a BOS

    async def count(text: str) -> int:
        num_words = len(text.split())
        return num_words + extra if is_a_token_each else round(num_words * num_probe_tokens / len(WORDS))

    return count


async def count_words(text: str) -> int:
    """Where nobody can count tokens."""
    return len(text.split())
