"""How everybody else uses the engine: requests in, token outputs out, from any thread and any event loop.

The client knows of each live request only whom to tell. It talks to the engine in messages and reads nothing
but its last snapshot, wherever the engine lives. Every accepted request gets exactly one output with a finish reason,
also if the engine dies or the client is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from roseinfer.core.errors import EngineError, EngineStoppedError, InvalidRequestError
from roseinfer.core.messages import AbortRequest, AddRequest, EngineStats, StepOutput, TokenOutput
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.admission import Admission
from roseinfer.engine.checks import check_ids, check_length, check_token_ids
from roseinfer.engine.engine import Engine
from roseinfer.engine.host import EngineHost
from roseinfer.engine.mailbox import Inbox, Mailbox
from roseinfer.engine.thread import EngineThread

logger = logging.getLogger(__name__)

OnOutput = Callable[[TokenOutput], None]

# float32 logits divided by less may overflow, and such a temperature chooses the highest logit anyway.
_MIN_TEMPERATURE = 1e-6


class EngineClient:
    """A handle on one engine, which from now on belongs to it; on a thread of this process, unless it has a host.

    `eos_ids` end a request unless it says `ignore_eos`. At most `max_queue` requests wait beside the
    `max_running` of the engine, shared out between `num_tenants` (see `Admission`).
    """

    def __init__(
        self,
        engine: Engine | EngineHost,
        eos_ids: Iterable[int] = (),
        *,
        max_queue: int = 256,
        num_tenants: int = 0,
    ) -> None:
        self._host: EngineHost = EngineThread(engine) if isinstance(engine, Engine) else engine
        self.vocab_size = engine.vocab_size
        self.max_model_len = engine.max_model_len  # tokens of prompt and output together
        self.eos_ids = tuple(eos_ids)
        check_token_ids("eos_ids", self.eos_ids, self.vocab_size)
        self.admission = Admission(engine.max_running, max_queue, num_tenants)
        self.max_live = self.admission.max_live  # requests that run or wait
        self.on_death: Callable[[str], None] = lambda reason: None  # the engine is gone for good; on its thread
        self._stats = engine.stats()
        self._random = random.Random()  # for seeds, which are no secrets
        self._request_ids = map("{}-{}".format, itertools.repeat(secrets.token_hex(6)), itertools.count())
        self._lock = threading.Lock()  # guards what follows
        self._live: dict[str, tuple[str, OnOutput]] = {}  # by id: the tenant, and whom to tell
        self._refusal: str | None = "the engine has not been started"
        self._mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}

    # -- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        with self._lock:
            self._refusal = None
        self._host.start(self._on_step, self._on_exit)

    def close(self) -> None:
        """Waits for the current step; requests that are not finished end with "abort". Idempotent."""
        with self._lock:
            self._refusal = "the engine has been closed"
        self._host.close()

    def __enter__(self) -> EngineClient:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        return self._refusal is None

    @property
    def is_ready(self) -> bool:
        """Whether the engine computes; an engine that is alive may be on its way back."""
        return self.is_alive and self._host.is_ready

    @property
    def num_restarts(self) -> int:
        return self._host.num_restarts

    def check_alive(self) -> None:
        """Raises `EngineError` with the reason if nothing can be submitted any more."""
        if self._refusal is not None:
            raise EngineStoppedError(self._refusal)

    def stats(self) -> EngineStats:
        """The engine's snapshot of its last step."""
        return self._stats

    # -- requests -------------------------------------------------------------------------------------------

    def make_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        choice: int = 0,
        tenant: str = "",
    ) -> AddRequest:
        """Resolves what is open (seed, stop ids) and checks the request; nothing is sent yet.

        Raises `InvalidRequestError`, and `ContextLengthError` with both counts for a prompt that can never fit.
        `max_tokens` is cut to what fits behind the prompt, so that generation ends with "length" there. Tenants share
        no cached prefixes: how long an answer takes must not tell what others ask.
        """
        check_length(len(prompt_ids), self.max_model_len)
        eos_ids = () if params.ignore_eos else self.eos_ids
        request = AddRequest(
            request_id=request_id or next(self._request_ids),
            prompt_ids=list(prompt_ids),
            max_tokens=min(params.max_tokens, self.max_model_len - len(prompt_ids)),
            temperature=float(params.temperature) if params.temperature >= _MIN_TEMPERATURE else 0.0,
            top_k=params.top_k,
            top_p=float(params.top_p),
            min_p=float(params.min_p),
            seed=self._random.getrandbits(63) if params.seed is None else params.seed,
            choice=choice,
            stop_token_ids=list(dict.fromkeys((*params.stop_token_ids, *eos_ids))),
            num_logprobs=_num_logprobs(params.logprobs, self.vocab_size),
            min_tokens=params.min_tokens,
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            repetition_penalty=float(params.repetition_penalty),
            logit_bias={token_id: float(bias) for token_id, bias in params.logit_bias.items()},
            allowed_token_ids=list(params.allowed_token_ids or ()),
            bad_words_ids=[list(word) for word in params.bad_words_ids],
            num_prompt_logprobs=_num_logprobs(params.prompt_logprobs, self.vocab_size),
            grammar=params.grammar,
            priority=params.priority,
            cache_salt=f"{tenant}/{params.cache_salt}" if tenant else params.cache_salt,
            tenant=tenant,
        )
        check_ids(request, self.vocab_size, self.max_model_len)
        return request

    def check_room(self, num_requests: int = 1, tenant: str = "") -> None:
        """Raises what submitting so many requests would raise now; to be asked before any work is done for them."""
        self.check_alive()
        self.admission.check(num_requests, tenant)

    def submit(self, request: AddRequest, on_output: OnOutput) -> None:
        """Starts a request; from any thread. `on_output` is called on the engine's thread and must not raise.

        Raises `OverloadedError` if the queue or the tenant's share of it is full, `EngineError` if the engine is gone.
        """
        self._submit([(request, on_output)])

    def _submit(self, submissions: Sequence[tuple[AddRequest, OnOutput]]) -> None:
        """One tenant's: all of them or, if there is no room, none."""
        with self._lock:
            self.check_alive()
            names = {request.request_id for request, _ in submissions}
            for request, _ in submissions:
                if request.request_id in self._live or len(names) < len(submissions):
                    raise InvalidRequestError(f"request id {request.request_id!r} is in use", "request_id")
            tenant = submissions[0][0].tenant
            self.admission.admit(len(submissions), tenant)
            for request, on_output in submissions:
                self._live[request.request_id] = (tenant, on_output)
                self._host.send(request)  # under the lock, so that no abort overtakes it

    def abort(self, request_id: str) -> None:
        """Ends a request after the current step; from any thread. An unknown or finished id is fine."""
        with self._lock:
            if request_id in self._live:
                self._host.send(AbortRequest(request_id))

    def stream_sync(self, *requests: AddRequest) -> Generator[TokenOutput, None, None]:
        """Submits on the first `next` and yields until all requests are finished; closing it aborts the rest."""
        outputs: SimpleQueue[TokenOutput] = SimpleQueue()
        self._submit([(request, outputs.put) for request in requests])
        num_unfinished = len(requests)
        try:
            while num_unfinished:
                output = outputs.get()
                num_unfinished -= output.finish_reason is not None
                yield output
        finally:
            if num_unfinished:
                self._abort_all(requests)

    async def stream(self, request: AddRequest) -> AsyncGenerator[TokenOutput, None]:
        """Submits on the first `anext` and yields until the request is finished.

        Closing the generator or cancelling its consumer aborts the request.
        """
        with self.open(request) as inbox:
            while outputs := await inbox.take():
                for output in outputs:
                    yield output

    @contextmanager
    def open(self, *requests: AddRequest, whole: bool = False) -> Iterator[Inbox]:
        """Submits requests to be read on the running event loop; leaving the block aborts what is not finished.

        The event loop is woken once per step, whatever the number of its streams; for requests that are read as a
        `whole` only when one of them is finished.
        """
        with self._mailbox(asyncio.get_running_loop()) as mailbox:
            inbox = Inbox(len(requests))
            post = partial(mailbox.post, inbox)
            self._submit([(request, _AtTheEnd(post) if whole else post) for request in requests])
            try:
                yield inbox
            finally:
                if not inbox.is_finished:
                    self._abort_all(requests)

    def _abort_all(self, requests: Iterable[AddRequest]) -> None:
        for request in requests:
            self.abort(request.request_id)

    # -- on the engine's thread -----------------------------------------------------------------------------

    def _on_step(self, step: StepOutput, stats: EngineStats) -> None:
        self._stats = stats
        self._deliver(step.outputs)

    def _on_exit(self, error: BaseException | None) -> None:
        with self._lock:
            if error is not None:
                self._refusal = str(error) if isinstance(error, EngineError) else f"the engine died: {error!r}"
            message = self._refusal if error is not None else None
            request_ids = list(self._live)
        self._deliver([TokenOutput(i, [], finish_reason="abort", error=message) for i in request_ids])
        if message is not None:
            self.on_death(message)

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        with self._lock:
            receivers = [self._receiver(output) for output in outputs]
            mailboxes = list(self._mailboxes.values())
        for on_output, output in zip(receivers, outputs, strict=True):
            if on_output is not None:
                self._call(on_output, output)
        for mailbox in mailboxes:
            for request_id in mailbox.flush():
                self.abort(request_id)

    def _receiver(self, output: TokenOutput) -> OnOutput | None:
        is_last = output.finish_reason is not None
        live = self._live.pop(output.request_id, None) if is_last else self._live.get(output.request_id)
        if live is None:
            return None
        tenant, on_output = live
        if is_last:
            self.admission.release(tenant)
        return on_output

    def _call(self, on_output: OnOutput, output: TokenOutput) -> None:
        try:
            on_output(output)
        except Exception:
            logger.exception("request %s: its receiver failed, the request is aborted", output.request_id)
            self.abort(output.request_id)

    # -- parts ----------------------------------------------------------------------------------------------

    @contextmanager
    def _mailbox(self, loop: asyncio.AbstractEventLoop) -> Iterator[Mailbox]:
        """The loop's mailbox, there as long as a stream needs it."""
        with self._lock:
            mailbox = self._mailboxes.setdefault(loop, Mailbox(loop))
            mailbox.num_streams += 1
        try:
            yield mailbox
        finally:
            with self._lock:
                mailbox.num_streams -= 1
                if mailbox.num_streams == 0:
                    del self._mailboxes[loop]


def _num_logprobs(asked_for: int | None, vocab_size: int) -> int:
    return -1 if asked_for is None else min(asked_for, vocab_size)


class _AtTheEnd:
    """Keeps a request's outputs back until the last one has come."""

    def __init__(self, on_output: OnOutput) -> None:
        self._on_output = on_output
        self._outputs: list[TokenOutput] = []

    def __call__(self, output: TokenOutput) -> None:
        self._outputs.append(output)
        if output.finish_reason is not None:
            for kept in self._outputs:
                self._on_output(kept)
