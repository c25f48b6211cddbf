from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from roseinfer.core.batch import ForwardInputs
from roseinfer.core.errors import ContextLengthError, EngineError, InvalidRequestError, OverloadedError
from roseinfer.core.messages import AddRequest, StepOutput, TokenOutput
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.client import EngineClient
from roseinfer.engine.engine import Engine
from tests.fake_engine import make_engine, make_request, make_scheduler, run_alone


@contextmanager
def running(engine: Engine | None = None, **options: Any) -> Iterator[EngineClient]:
    with EngineClient(engine or make_engine(), **options) as client:
        yield client


def endless(request_id: str) -> AddRequest:
    return make_request(request_id, [1, 2, 3], max_tokens=100_000)


def big_engine(**options: Any) -> Engine:
    return make_engine(make_scheduler(num_blocks=40_000, max_model_len=150_000, **options))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


def text(outputs: list[TokenOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


async def collect(client: EngineClient, request: AddRequest) -> list[TokenOutput]:
    return [output async for output in client.stream(request)]


# -- making requests ----------------------------------------------------------------------------------------


def test_a_request_is_resolved() -> None:
    client = EngineClient(make_engine(), eos_ids=[5, 6])
    params = SamplingParams(max_tokens=1000, temperature=0.5, stop_token_ids=(6, 7), logprobs=20)
    request = client.make_request([1, 2, 3], params, choice=2)
    assert request.stop_token_ids == [6, 7, 5]
    assert request.max_tokens == 128 - 3
    assert (request.temperature, request.choice, request.num_logprobs) == (0.5, 2, 20)
    other = client.make_request([1, 2, 3], params)
    assert request.seed != other.seed
    assert request.request_id != other.request_id


def test_what_is_given_is_kept() -> None:
    client = EngineClient(make_engine(), eos_ids=[5, 6])
    params = SamplingParams(seed=11, ignore_eos=True, stop_token_ids=(7,), temperature=1e-30)
    request = client.make_request([1, 2, 3], params, request_id="mine")
    assert (request.seed, request.stop_token_ids, request.request_id) == (11, [7], "mine")
    assert (request.num_logprobs, request.max_tokens) == (-1, 64)
    assert request.temperature == 0.0  # float32 cannot divide by less


@pytest.mark.parametrize(
    ("prompt_ids", "params", "error", "message"),
    [
        ([], SamplingParams(), InvalidRequestError, "empty"),
        ([50], SamplingParams(), InvalidRequestError, "50 is not in the vocabulary of 50"),
        ([-1], SamplingParams(), InvalidRequestError, "vocabulary"),
        ([1], SamplingParams(stop_token_ids=(50,)), InvalidRequestError, "stop_token_ids"),
        ([1] * 128, SamplingParams(), ContextLengthError, "128 tokens, .* 128 tokens"),
        ([1] * 300, SamplingParams(), ContextLengthError, "300 tokens, .* 128 tokens"),
    ],
)
def test_bad_requests_are_refused(
    prompt_ids: list[int], params: SamplingParams, error: type[InvalidRequestError], message: str
) -> None:
    with pytest.raises(error, match=message):
        EngineClient(make_engine()).make_request(prompt_ids, params)


def test_the_pool_limits_the_context() -> None:
    client = EngineClient(make_engine(make_scheduler(num_blocks=4, block_size=4)))
    assert client.max_model_len == 16
    with pytest.raises(ContextLengthError, match=r"16 tokens, .* 16 tokens") as caught:
        client.make_request([1] * 16, SamplingParams())
    assert caught.value.code == "context_length_exceeded"


def test_eos_ids_are_checked() -> None:
    with pytest.raises(InvalidRequestError, match="eos_ids"):
        EngineClient(make_engine(), eos_ids=[99])


# -- running ------------------------------------------------------------------------------------------------


def test_streams_from_64_threads() -> None:
    requests = [make_request(f"r{i}", [i % 50] * (i % 20 + 1), seed=i, temperature=1.0) for i in range(64)]
    with running() as client, ThreadPoolExecutor(64) as pool:
        outputs = list(pool.map(lambda request: list(client.stream_sync(request)), requests))
    for request, stream in zip(requests, outputs, strict=True):
        assert text(stream) == run_alone(request)[0]
        assert [output.finish_reason for output in stream[:-1]] == [None] * (len(stream) - 1)
        assert stream[-1].finish_reason == "length"


def test_streams_of_one_event_loop() -> None:
    requests = [make_request(f"r{i}", [i % 50] * (i % 20 + 1), seed=i, temperature=1.0) for i in range(64)]

    async def main(client: EngineClient) -> list[list[TokenOutput]]:
        return await asyncio.gather(*(collect(client, request) for request in requests))

    with running() as client:
        outputs = asyncio.run(main(client))
        assert not client._mailboxes
    for request, stream in zip(requests, outputs, strict=True):
        assert text(stream) == run_alone(request)[0]


def test_the_event_loop_is_woken_once_per_step() -> None:
    async def main(client: EngineClient) -> int:
        loop, num_calls = asyncio.get_running_loop(), 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            return call_soon_threadsafe(*args, **kwargs)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        await asyncio.gather(*(collect(client, make_request(f"r{i}", [i], max_tokens=40)) for i in range(8)))
        return num_calls

    with running() as client:
        num_calls = asyncio.run(main(client))
        assert num_calls <= client.stats().num_steps
        assert client.stats().num_steps < 8 * 40 / 2


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0, "stop_token_ids": list(range(0, 50, 7))}])
def test_what_is_taken_as_a_whole_is_the_same_and_wakes_the_loop_once(options: dict[str, Any]) -> None:
    request = make_request("r", [4, 5], max_tokens=40, **options)

    async def main(client: EngineClient) -> tuple[list[TokenOutput], int]:
        loop = asyncio.get_running_loop()
        with patch.object(loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe) as wake:
            with client.open(request, whole=True) as inbox:
                outputs = await inbox.take()
                assert await inbox.take() == []
            return outputs, wake.call_count

    with running() as client:
        outputs, num_calls = asyncio.run(main(client))
        assert not client._mailboxes
    assert text(outputs) == run_alone(request)[0]
    assert [output.finish_reason is None for output in outputs] == [True] * (len(outputs) - 1) + [False]
    assert num_calls == 1


def test_who_is_slow_takes_more_at_once() -> None:
    request = make_request("r", [4, 5], max_tokens=40)

    async def main(client: EngineClient) -> list[list[TokenOutput]]:
        with client.open(request) as inbox:
            lists = [await inbox.take()]
            while client._live:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)  # what the last step handed over is in the inbox now
            while outputs := await inbox.take():
                lists.append(outputs)
            return lists

    with running() as client:
        lists = asyncio.run(main(client))
    assert text([output for outputs in lists for output in outputs]) == run_alone(request)[0]
    assert len(lists) <= 3


def test_leaving_what_is_taken_as_a_whole_aborts_it() -> None:
    async def main(client: EngineClient) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(take_whole(client, endless("a")), 0.05)
        while not all_blocks_are_back(client):
            await asyncio.sleep(0.001)

    async def take_whole(client: EngineClient, request: AddRequest) -> None:
        with client.open(request, whole=True) as inbox:
            await inbox.take()

    with running(big_engine()) as client:
        asyncio.run(asyncio.wait_for(main(client), 20))


def test_streams_of_several_event_loops() -> None:
    request = make_request("r", [4, 5], max_tokens=20)
    expected = run_alone(request)[0]
    with running() as client, ThreadPoolExecutor(4) as pool:
        requests = [make_request(f"r{i}", [4, 5], max_tokens=20) for i in range(4)]
        streams = list(pool.map(lambda request: asyncio.run(collect(client, request)), requests))
    assert [text(stream) for stream in streams] == [expected] * 4


def test_results_come_as_messages_on_the_engine_thread() -> None:
    outputs: list[TokenOutput] = []
    threads: set[str] = set()
    done = threading.Event()

    def on_output(output: TokenOutput) -> None:
        outputs.append(output)
        threads.add(threading.current_thread().name)
        if output.finish_reason is not None:
            done.set()

    request = make_request("a", [1, 2, 3])
    with running() as client:
        client.submit(request, on_output)
        assert done.wait(10)
    assert text(outputs) == run_alone(request)[0]
    assert threads == {"roseinfer-engine"}


def test_a_receiver_that_raises_loses_its_request_only() -> None:
    def on_output(output: TokenOutput) -> None:
        raise ValueError("receiver")

    request = make_request("good", [1, 2, 3], max_tokens=30)
    with running(big_engine()) as client:
        client.submit(endless("bad"), on_output)
        assert text(list(client.stream_sync(request))) == run_alone(request)[0]
        wait_until(lambda: client.stats().num_running == 0)


# -- aborting -----------------------------------------------------------------------------------------------


def all_blocks_are_back(client: EngineClient) -> bool:
    stats = client.stats()
    return stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks and not stats.num_waiting


def test_closing_a_stream_frees_its_blocks_within_two_steps() -> None:
    with running(big_engine()) as client:
        stream = client.stream_sync(endless("a"))
        for _ in range(5):
            next(stream)
        stream.close()
        num_steps = client.stats().num_steps
        wait_until(lambda: all_blocks_are_back(client))
        assert client.stats().num_steps <= num_steps + 2


def test_cancelling_a_consumer_aborts_its_request() -> None:
    async def main(client: EngineClient) -> None:
        tasks = [asyncio.create_task(collect(client, endless(f"r{i}"))) for i in range(6)]
        short = make_request("short", [1, 2], max_tokens=20)
        assert text(await collect(client, short)) == run_alone(short)[0]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while not all_blocks_are_back(client):
            await asyncio.sleep(0.001)

    with running(big_engine()) as client:
        asyncio.run(asyncio.wait_for(main(client), 20))


def test_closing_an_async_stream_aborts_its_request() -> None:
    async def main(client: EngineClient) -> None:
        stream = client.stream(endless("a"))
        await anext(stream)
        await stream.aclose()
        while not all_blocks_are_back(client):
            await asyncio.sleep(0.001)

    with running(big_engine()) as client:
        asyncio.run(asyncio.wait_for(main(client), 20))


def test_a_loop_that_is_gone_takes_its_requests_with_it() -> None:
    with running(big_engine()) as client:
        loop = asyncio.new_event_loop()
        stream = client.stream(endless("a"))
        loop.run_until_complete(anext(stream))
        loop.close()
        wait_until(lambda: all_blocks_are_back(client))


def test_aborting_is_idempotent_and_reported_once() -> None:
    outputs: list[TokenOutput] = []
    with running(big_engine()) as client:
        client.abort("unknown")
        client.submit(endless("a"), outputs.append)
        for _ in range(3):
            client.abort("a")
        wait_until(lambda: not client._live)
        client.abort("a")
        client.submit(make_request("a", [1], max_tokens=1), outputs.append)  # the id is free again
        wait_until(lambda: not client._live)
    assert [o.finish_reason for o in outputs if o.finish_reason] == ["abort", "length"]


def test_an_id_in_use_is_refused_and_its_owner_goes_on() -> None:
    request = make_request("a", [1, 2, 3], max_tokens=100)
    with running() as client:
        stream = client.stream_sync(request)
        first = next(stream)
        with pytest.raises(InvalidRequestError, match="in use"):
            next(client.stream_sync(request))
        with pytest.raises(InvalidRequestError, match="in use"):
            asyncio.run(collect(client, request))
        assert text([first, *stream]) == run_alone(request)[0]


def test_a_storm_of_aborts_leaves_nothing_behind() -> None:
    def visit(i: int) -> None:
        request = make_request(f"r{i}", [i % 7] * (i % 30 + 1), max_tokens=5 + i % 40)
        stream = client.stream_sync(request)
        outputs = [output for _, output in zip(range(i % 6), stream, strict=False)]
        if i % 4:
            stream.close()
        else:
            assert text([*outputs, *stream]) == run_alone(request)[0]

    scheduler = make_scheduler(num_blocks=32)
    with running(make_engine(scheduler), max_queue=1000) as client, ThreadPoolExecutor(32) as pool:
        list(pool.map(visit, range(300)))
        wait_until(lambda: all_blocks_are_back(client))
    scheduler.check()
    assert not scheduler.has_work


# -- limits, faults, ends -----------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once() -> None:
    with running(big_engine(max_running=2), max_queue=3) as client:
        for i in range(5):
            client.submit(endless(f"r{i}"), lambda output: None)
        with pytest.raises(OverloadedError, match="5 requests") as caught:
            client.submit(endless("one too many"), lambda output: None)
        assert 1 <= caught.value.retry_after <= 60
        client.abort("r0")
        wait_until(lambda: len(client._live) < 5)
        client.submit(endless("now"), lambda output: None)


def test_closing_ends_what_is_left() -> None:
    outputs: list[TokenOutput] = []
    before = set(threading.enumerate())
    client = EngineClient(big_engine(max_running=1))
    client.start()
    for i in range(3):
        client.submit(endless(f"r{i}"), outputs.append)
    client.close()
    client.close()
    ends = [output for output in outputs if output.finish_reason is not None]
    assert {(end.request_id, end.finish_reason) for end in ends} == {(f"r{i}", "abort") for i in range(3)}
    assert len(ends) == 3
    with pytest.raises(EngineError, match="closed"):
        client.submit(endless("late"), outputs.append)
    assert not client.is_alive
    assert set(threading.enumerate()) <= before


def test_nothing_is_accepted_before_the_start() -> None:
    with pytest.raises(EngineError, match="not been started"):
        EngineClient(make_engine()).submit(endless("a"), lambda output: None)


def test_a_failing_step_ends_its_requests_and_the_client_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(make_scheduler(), poison_token=49)
    request = make_request("good", [1, 2, 3], stop_token_ids=[49])
    with running(engine) as client:
        (output,) = client.stream_sync(make_request("bad", [1, 49, 3]))
        assert (output.finish_reason, output.token_ids) == ("error", [])
        assert "poison" in (output.error or "")
        assert text(list(client.stream_sync(request))) == run_alone(request)[0]
        assert client.is_alive


class DeadlyEngine(Engine):
    def step(self) -> StepOutput:
        if len(self._scheduler.running) + len(self._scheduler.waiting) == 4:
            raise SystemError("a bug in the engine itself")
        return super().step()


def test_when_the_engine_dies_every_request_hears_of_it() -> None:
    scheduler = make_scheduler(num_blocks=40_000, max_model_len=150_000, max_running=2)
    engine = DeadlyEngine(make_engine(scheduler)._program, scheduler)
    with running(engine) as client:
        with ThreadPoolExecutor(4) as pool:
            requests = [endless(f"r{i}") for i in range(4)]
            ends = [stream[-1] for stream in pool.map(lambda request: list(client.stream_sync(request)), requests)]
        assert {end.finish_reason for end in ends} == {"abort"}
        assert all("a bug in the engine itself" in (end.error or "") for end in ends)
        assert not client.is_alive
        with pytest.raises(EngineError, match="died"):
            client.submit(endless("late"), lambda output: None)


def test_submitting_does_not_wait_for_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, entered, gate = make_engine(), threading.Event(), threading.Event()
    forward = engine._program.forward

    def slow(inputs: ForwardInputs) -> None:
        entered.set()
        assert gate.wait(10)
        forward(inputs)

    monkeypatch.setattr(engine._program, "forward", slow)
    with running(engine) as client:
        client.submit(make_request("a", [1]), lambda output: None)
        assert entered.wait(10)
        start = time.monotonic()
        client.submit(make_request("b", [1]), lambda output: None)
        client.abort("b")
        assert time.monotonic() - start < 1.0
        gate.set()
        wait_until(lambda: not client._live)
