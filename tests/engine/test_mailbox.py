from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from roseinfer.core.messages import PromptLogprobs, TokenOutput
from roseinfer.engine.mailbox import MAX_SEPARATE, Inbox, merged


def outputs_of(request_id: str, lengths: list[int]) -> list[TokenOutput]:
    """So many tokens in each; the first one has what first ones have, the last one what last ones have."""
    number = iter(range(sum(lengths)))
    outputs = []
    for index, length in enumerate(lengths):
        ids = [next(number) for _ in range(length)]
        first = {"num_cached_tokens": 3, "prompt_logprobs": PromptLogprobs([-1.0]), "queue_seconds": 0.5}
        last = {"finish_reason": "stop", "stop_token_id": 9, "decode_seconds": 4.0}
        outputs.append(
            TokenOutput(
                request_id,
                ids,
                [-0.5 * i for i in ids],
                [[i, i + 1] for i in ids],
                [[-0.5 * i, -9.0] for i in ids],
                **(first if index == 0 else {}),
                **(last if index == len(lengths) - 1 else {}),  # type: ignore[arg-type]
            )
        )
    return outputs


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_merging_loses_nothing(a: list[int], b: list[int]) -> None:
    own, other = outputs_of("a", a), outputs_of("b", b)
    mixed = [output for pair in zip(own, other, strict=False) for output in pair]
    mixed += own[len(other) :] + other[len(own) :]
    assert sorted(merged(mixed), key=lambda each: each.request_id) == [
        outputs_of("a", [sum(a)])[0],
        outputs_of("b", [sum(b)])[0],
    ]


def test_a_reader_that_lags_behind_finds_few_outputs_with_all_tokens() -> None:
    async def lag() -> list[TokenOutput]:
        inbox = Inbox(1)
        for output in outputs_of("a", [1] * 5000):
            inbox.put(output)
            assert len(inbox._outputs) <= MAX_SEPARATE + 1
        taken = await inbox.take()
        assert inbox.is_finished
        return taken

    taken = asyncio.run(lag())
    assert [i for output in taken for i in output.token_ids] == list(range(5000))
    assert taken[-1].finish_reason == "stop"
    assert taken[0].prompt_logprobs is not None
