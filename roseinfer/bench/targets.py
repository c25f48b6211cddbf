"""What is measured: a server behind a URL, or the engine in this process. Both turn prompts into calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from roseinfer.bench.http_client import HttpClient, Response
from roseinfer.bench.processes import Resources, resources_of
from roseinfer.bench.prompts import Prompt, PromptSource, tokenizer_ids
from roseinfer.bench.protocols import ApiProtocol, Reply
from roseinfer.core.messages import AddRequest, TokenOutput
from roseinfer.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from roseinfer.engine.client import EngineClient
    from roseinfer.inference_engine import InferenceEngine


class Call(Protocol):
    """One request, made ready before the clock runs and read when it has stopped."""

    async def send(self) -> None:
        """Until the reply is complete. Raises OSError, BadResponseError or RoseinferError."""

    def reply(self) -> Reply:
        """After `send`."""


class Target(Protocol):
    prompts: PromptSource

    def call(self, prompt: Prompt, output_len: int) -> Call: ...

    async def open(self, num_connections: int) -> None:
        """Gets ready for so many calls at once."""

    def resources(self) -> Resources | None:
        """What the measured processes have used so far; None where that is not known."""

    def facts(self) -> dict[str, Any]:
        """What a reader of the figures should know."""


class HttpCall:
    def __init__(self, client: HttpClient, protocol: ApiProtocol, prompt: Prompt, output_len: int) -> None:
        self._client = client
        self._protocol = protocol
        self._prompt = prompt
        self._output_len = output_len
        self._request = client.encode(protocol.path, protocol.body(prompt, output_len))
        self._response: Response | None = None

    async def send(self) -> None:
        self._response = await self._client.send(self._request)

    def reply(self) -> Reply:
        assert self._response is not None
        return self._protocol.read(self._response, self._prompt, self._output_len)


class HttpTarget:
    """A server, as `discovery.connect` has found it. `pid` is its process, where that is known."""

    def __init__(
        self,
        client: HttpClient,
        protocol: ApiProtocol,
        prompts: PromptSource,
        *,
        facts: dict[str, Any],
        pid: int | None = None,
    ) -> None:
        self.prompts = prompts
        self._client = client
        self._protocol = protocol
        self._facts = facts
        self._pid = pid

    def call(self, prompt: Prompt, output_len: int) -> HttpCall:
        return HttpCall(self._client, self._protocol, prompt, output_len)

    async def open(self, num_connections: int) -> None:
        await self._client.open(num_connections)

    def resources(self) -> Resources | None:
        return None if self._pid is None else resources_of(self._pid)

    def facts(self) -> dict[str, Any]:
        return {**self._facts, "protocol": f"POST {self._protocol.path}", "prompts": self.prompts.description}

    def close(self) -> None:
        self._client.close()


class EngineCall:
    """Its times are taken on the engine's thread."""

    def __init__(self, client: EngineClient, request: AddRequest) -> None:
        self._client = client
        self._request = request
        self._chunk_times: list[float] = []
        self._num_tokens = 0
        self._last: TokenOutput | None = None
        self._end = 0.0

    async def send(self) -> None:
        finished = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, finished.set)
        self._client.submit(self._request, partial(self._on_output, wake=wake))
        await finished.wait()

    def _on_output(self, output: TokenOutput, *, wake: partial[asyncio.Handle]) -> None:
        now = perf_counter()
        if output.token_ids:
            self._chunk_times.append(now)
            self._num_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            self._last, self._end = output, now
            with contextlib.suppress(RuntimeError):  # the event loop is gone: the user has had enough
                wake()

    def reply(self) -> Reply:
        assert self._last is not None
        has_failed = self._last.finish_reason in ("error", "abort")
        return Reply(
            end=self._end,
            chunk_times=self._chunk_times,
            num_input_tokens=len(self._request.prompt_ids),
            num_output_tokens=self._num_tokens,
            num_cached_tokens=self._last.num_cached_tokens,
            counted_by="engine",
            error=(self._last.error or "the request was aborted") if has_failed else None,
        )


class EngineTarget:
    """The engine without HTTP, in this process; it belongs to the caller."""

    def __init__(self, engine: InferenceEngine) -> None:
        self.prompts: PromptSource = tokenizer_ids(engine.tokenizer)
        self._engine = engine

    def call(self, prompt: Prompt, output_len: int) -> EngineCall:
        assert isinstance(prompt.content, list)
        params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
        client = self._engine.client
        return EngineCall(client, client.make_request(prompt.content, params))

    async def open(self, num_connections: int) -> None:
        pass

    def resources(self) -> Resources | None:
        return resources_of(os.getpid())

    def facts(self) -> dict[str, Any]:
        return {"model": self._engine.name, "protocol": "in this process", "prompts": self.prompts.description}
