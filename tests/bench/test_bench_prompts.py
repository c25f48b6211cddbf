"""Prompts have the wanted number of tokens, differ, share what they should, and come from the seed."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from roseinfer.bench.prompts import (
    WORDS,
    Count,
    IdPrompts,
    Prompt,
    PromptSource,
    TextPrompts,
    count_words,
    estimated_count,
    tokenizer_count,
    tokenizer_ids,
)
from roseinfer.bench.workloads import PRESETS, Workload
from roseinfer.text import load_tokenizer
from tests.fake_model import BOS, byte_tokenizer

POOL = range(1000, 1500)


def make(source: PromptSource, workload: Workload, seed: int = 0) -> list[Prompt]:
    return asyncio.run(source.make(workload, Random(seed)))


async def count_letters(text: str) -> int:
    """A token per letter and space, and a BOS."""
    return 1 + len(text)


async def count_evenly(text: str) -> int:
    """Two tokens per word: no odd number of tokens can be had."""
    return 2 * len(text.split())


@pytest.mark.parametrize("name", PRESETS)
def test_ids_have_the_length_and_differ(name: str) -> None:
    workload = PRESETS[name]
    prompts = make(IdPrompts(POOL, source="x"), workload)
    assert [len(prompt.content) for prompt in prompts] == [workload.input_len] * workload.num_requests
    assert all(prompt.num_tokens == workload.input_len for prompt in prompts)
    assert {token_id for prompt in prompts for token_id in prompt.content} <= set(POOL)
    assert len({tuple(prompt.content) for prompt in prompts}) == workload.num_requests


def test_shared_ids_are_shared_and_no_more() -> None:
    workload = PRESETS["w4"]
    prompts = [prompt.content for prompt in make(IdPrompts(POOL, [7], source="x"), workload)]
    assert len({tuple(ids[:1000]) for ids in prompts}) == 1
    assert len({tuple(ids[1000:1016]) for ids in prompts}) == len(prompts)
    assert {ids[0] for ids in prompts} == {7}
    assert not any(7 in ids[1:] for ids in prompts)


def test_ids_start_with_bos_that_counts() -> None:
    for input_len in (1, 2, 9):
        workload = Workload(name="x", num_requests=3, input_len=input_len)
        for prompt in make(IdPrompts(POOL, [7], source="x"), workload):
            assert prompt.content[0] == 7
            assert len(prompt.content) == input_len


def test_the_seed_decides() -> None:
    source, workload = IdPrompts(POOL, source="x"), PRESETS["w5"]
    assert make(source, workload, 1) == make(source, workload, 1)
    assert not set(map(str, make(source, workload, 1))) & set(map(str, make(source, workload, 2)))


@pytest.mark.parametrize("count", [count_words, count_letters])
@pytest.mark.parametrize("shared_prefix_len", [0, 40])
def test_text_has_the_length_whatever_a_token_is(count: Count, shared_prefix_len: int) -> None:
    workload = Workload(name="x", num_requests=20, input_len=128, shared_prefix_len=shared_prefix_len)
    prompts = make(TextPrompts(count, source="x"), workload)
    assert [prompt.num_tokens for prompt in prompts] == [128] * 20
    for prompt in prompts:
        assert isinstance(prompt.content, str)
        assert asyncio.run(count(prompt.content)) == 128
    assert len({prompt.content for prompt in prompts}) == 20


def test_shared_text_is_shared() -> None:
    workload = Workload(name="x", num_requests=9, input_len=50, shared_prefix_len=30)
    prompts = [str(prompt.content).split() for prompt in make(TextPrompts(count_words, source="x"), workload)]
    assert len({tuple(words[:30]) for words in prompts}) == 1
    assert len({tuple(words[30:]) for words in prompts}) == 9


def test_a_length_that_cannot_be_had_is_not_claimed() -> None:
    workload = Workload(name="x", num_requests=3, input_len=9)
    prompts = make(TextPrompts(count_evenly, source="x"), workload)
    assert {prompt.num_tokens for prompt in prompts} <= {8, 10}


def test_an_uncertain_count_is_not_claimed_either() -> None:
    (prompt,) = make(TextPrompts(count_words, source="x", is_exact=False), Workload(name="x", input_len=9))
    assert prompt.num_tokens is None
    assert len(str(prompt.content).split()) == 9


@pytest.mark.parametrize(("num_probe_tokens", "num_tokens"), [(0, 20), (1, 21), (len(WORDS), 40)])
def test_the_estimate_from_usage(num_probe_tokens: int, num_tokens: int) -> None:
    """All WORDS are one token each, with a BOS, or two tokens each."""
    count = estimated_count(len(WORDS) + num_probe_tokens)
    assert asyncio.run(count(" ".join(WORDS[:20]))) == num_tokens


def test_words_are_what_the_estimate_takes_them_for() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 200
    assert all(word.isascii() and word.islower() for word in WORDS)


def test_the_local_tokenizer_counts_what_the_engine_sees() -> None:
    tokenizer = byte_tokenizer()
    assert asyncio.run(tokenizer_count(tokenizer)("")) == 1  # an empty prompt starts from BOS
    (prompt,) = make(tokenizer_ids(tokenizer), Workload(name="x", input_len=50))
    assert set(prompt.content) <= set(" ".join(WORDS).encode())
    assert BOS not in prompt.content


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_real_tokenizers_take_a_word_for_a_token(fixture: str, request: pytest.FixtureRequest) -> None:
    from roseinfer.checkpoints import open_checkpoint

    with open_checkpoint(request.getfixturevalue(fixture)) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    assert len(tokenizer_ids(tokenizer).every_id) == len(WORDS) + len(tokenizer.encode(""))
    workload = Workload(name="x", num_requests=5, input_len=300, shared_prefix_len=200)
    for prompt in make(TextPrompts(tokenizer_count(tokenizer), source="x"), workload):
        assert len(tokenizer.encode_prompt(str(prompt.content))) == prompt.num_tokens == 300
