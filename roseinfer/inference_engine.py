"""The library's door: text in, text out. The server goes through it as well, so both give the same answers.

engine = InferenceEngine(checkpoint_path="smollm2-135m")
print(engine.generate(prompt="The capital of France is", max_new_tokens=16))
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from roseinfer.core.config import Config, load_config
from roseinfer.core.errors import ContextLengthError, InvalidRequestError
from roseinfer.core.messages import TokenOutput
from roseinfer.core.metrics import Observer
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.checks import prompt_too_long
from roseinfer.engine_loading import load_here, load_in_process
from roseinfer.generation import Generation, merge
from roseinfer.text.output_text import TextDelta, TextOptions

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from roseinfer.engine.client import EngineClient
    from roseinfer.engine.model_info import ModelInfo
    from roseinfer.text import Tokenizer

Deltas = list[tuple[Generation, TextDelta]]

logger = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 64
MAX_BATCH_THREADS = 64  # each waits for one request


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateParams:
    """What `generate` and `POST /generate` take beside the prompt."""

    max_new_tokens: int | None = None  # None = 64, or as many as still fit behind the prompt
    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    stop_on_eos: bool = True
    do_sample: bool = False  # False = greedy
    seed: int | None = None

    def check(self) -> None:
        """Raises InvalidRequestError naming the field, also where greedy decoding would not look at it."""
        self.sampling_params()

    def sampling_params(self) -> SamplingParams:
        """The same for the engine. Raises as `check` does."""
        for name in ("stop_on_eos", "do_sample"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false, got {getattr(self, name)!r}", name)
        try:
            params = SamplingParams(
                max_tokens=DEFAULT_MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=self.seed,
                ignore_eos=not self.stop_on_eos,
            )
        except InvalidRequestError as error:
            if error.param != "max_tokens":
                raise
            message = error.message.replace("max_tokens", "max_new_tokens")
            raise InvalidRequestError(message, "max_new_tokens") from None
        return params if self.do_sample else dataclasses.replace(params, temperature=0.0)


class GenerateOptions(TypedDict, total=False):
    """`GenerateParams` as keyword arguments."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    stop_on_eos: bool
    do_sample: bool
    seed: int | None


class InferenceEngine:
    """A model that is loaded and running. May be called from several threads at once; what they ask is batched.

    Args:
        checkpoint_path: a .gguf file, a safetensors folder, a torch file, a catalogue name or a hub id.
        tokenizer_name: a tokenizer.json, a folder, a .gguf file or a hub id; None = the checkpoint's own.
        device: auto, cpu or cuda; auto is the GPU if there is one and roseinfer[cuda] is installed.
        use_amp: False computes in float32.
        bf16: True computes in bfloat16, unless `use_amp` is off.
        engine_process: True computes in a process of its own, which is started anew if it dies.
        settings: any other setting of `core.config.Config` by name, for example `threads=4`.

    Raises ConfigError, DeviceError, CheckpointError.
    """

    def __init__(
        self,
        checkpoint_path: str | None = None,
        tokenizer_name: str | None = None,
        device: str = "auto",
        use_amp: bool = True,
        bf16: bool = False,
        engine_process: bool = False,
        **settings: object,
    ) -> None:
        chosen = None if device == "auto" else device
        flags = {"model": checkpoint_path, "tokenizer": tokenizer_name, "device": chosen, **settings}
        flags.setdefault("dtype", dtype_of(use_amp, bf16))
        config = load_config(flags)
        parts = load_in_process(config) if engine_process else load_here(config)
        self._start(*parts, config.seed, _served_name(config))

    @classmethod
    def from_config(
        cls,
        config: Config,
        say: Callable[[str], None] | None = None,
        *,
        num_tenants: int = 0,
        engine_process: bool = False,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Self:
        """`say` is told of each thing that takes time; `meanwhile` is called while the engine's process loads, if any.

        `num_tenants`: callers with keys of their own, between whom places are shared out.
        """
        engine = cls.__new__(cls)
        if engine_process:
            parts = load_in_process(config, say, num_tenants, meanwhile)
        else:
            meanwhile()
            parts = load_here(config, say, num_tenants)
        engine._start(*parts, config.seed, _served_name(config))
        return engine

    @classmethod
    def from_parts(
        cls, client: EngineClient, tokenizer: Tokenizer, info: ModelInfo, *, seed: int | None = None
    ) -> Self:
        """Around a client that runs already; closing the engine closes it."""
        engine = cls.__new__(cls)
        engine._start(client, tokenizer, info, seed)
        return engine

    def _start(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        info: ModelInfo,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.info = info
        self.name = name or info.name
        self.observer = Observer()
        self._seed = seed

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> str:
        """The prompt and its completion. The options are the fields of `GenerateParams`."""
        return prompt + "".join(self.stream_generate(prompt, **options))

    def stream_generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """The completion in pieces as they come; wrong options are raised at once, not with the first piece."""
        return self.stream(self.prepare(prompt, GenerateParams(**options)))

    def generate_batch(
        self, prompts: Sequence[str], params: GenerateParams | Sequence[GenerateParams] | None = None
    ) -> list[str]:
        """`generate` for many prompts, computed together; one `params` for all of them, or one each."""
        per_prompt = _one_each(prompts, params)
        generations = [self.prepare(prompt, each) for prompt, each in zip(prompts, per_prompt, strict=True)]
        if not generations:
            return []
        num_threads = min(len(generations), self.client.max_live, MAX_BATCH_THREADS)
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="generate-batch")
        try:
            completions = pool.map(lambda generation: "".join(self.stream(generation)), generations)
            return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        finally:
            pool.shutdown(cancel_futures=True)

    # -- preparing ------------------------------------------------------------------------------------------

    def prepare(self, prompt: str, params: GenerateParams, *, tenant: str = "") -> Generation:
        """Tokenises and checks; nothing is queued yet. Takes milliseconds for a long prompt. `tenant`: who asks.

        Raises InvalidRequestError naming the field, ContextLengthError with both counts.
        """
        if not isinstance(prompt, str):
            raise InvalidRequestError(f"prompt must be a string, got {type(prompt).__name__}", "prompt")
        sampling = params.sampling_params()  # a prompt is tokenised only if the rest is sound
        self.check_length(prompt)
        ids = self.tokenizer.encode_prompt(prompt)
        if params.max_new_tokens is not None:
            self._check_room(len(ids), params.max_new_tokens, "max_new_tokens")
        return self.prepare_ids([ids], sampling, cut=True, tenant=tenant)[0]

    def prepare_ids(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        options: TextOptions = TextOptions(),  # noqa: B008
        n: int = 1,
        *,
        cut: bool = False,
        tenant: str = "",
    ) -> list[Generation]:
        """`n` generations of each prompt, prompt by prompt; nothing is queued yet.

        `cut`: as many of `max_tokens` as fit behind the prompt, where otherwise it is an error that they do not. Raises
        InvalidRequestError naming the field, ContextLengthError with both counts.
        """
        num_sequences = len(prompts) * n
        if num_sequences > self.client.max_live:
            raise InvalidRequestError(
                f"{num_sequences} sequences were asked for, this server takes {self.client.max_live} at once", "n"
            )
        if params.seed is None and self._seed is not None:
            params = dataclasses.replace(params, seed=self._seed)
        is_scored_only = params.max_tokens == 0 and params.prompt_logprobs is not None
        if is_scored_only:
            params = dataclasses.replace(params, max_tokens=1, min_tokens=0)
        if not cut:
            for prompt_ids in prompts:
                self._check_room(len(prompt_ids), params.max_tokens, "max_tokens")
        make = self.client.make_request
        requests = [make(ids, params, choice=choice, tenant=tenant) for ids in prompts for choice in range(n)]
        return [
            Generation(
                request,
                self.tokenizer,
                options,
                self.observer,
                eos_ids=self.client.eos_ids,
                index=index,
                is_scored_only=is_scored_only,
            )
            for index, request in enumerate(requests)
        ]

    def check_length(self, prompt: str) -> None:
        """Refuses what cannot fit, however it is tokenised, before any work is done on it."""
        at_least, limit = self.tokenizer.min_num_tokens(prompt), self.client.max_model_len
        if at_least >= limit:
            raise prompt_too_long(f"at least {at_least}", limit)

    def _check_room(self, num_prompt_tokens: int, max_tokens: int, param: str) -> None:
        limit = self.client.max_model_len
        if num_prompt_tokens < limit < num_prompt_tokens + max_tokens:  # a prompt without any room is told later
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens and {param} is {max_tokens}, together "
                f"{num_prompt_tokens + max_tokens}, but the context length is {limit} tokens",
                param,
            )

    # -- running --------------------------------------------------------------------------------------------

    def stream(self, generation: Generation) -> Iterator[str]:
        """Its text in pieces; closing the iterator early ends the request."""
        with contextlib.closing(self.run([generation])) as deltas:
            for _, delta in deltas:
                if delta.text:
                    yield delta.text

    async def astream(self, generation: Generation) -> AsyncGenerator[str, None]:
        """`stream` for an event loop; closing or cancelling it ends the request. Who is slow gets larger pieces."""
        async with contextlib.aclosing(self.arun([generation])) as steps:
            async for deltas in steps:
                if piece := "".join([delta.text for _, delta in deltas]):
                    yield piece

    async def acomplete(self, generation: Generation) -> str:
        """All the pieces of `astream` in one; cancelling it ends the request."""
        return (await self.arun_whole([generation]))[0].text

    def run(self, generations: Sequence[Generation]) -> Generator[tuple[Generation, TextDelta], None, None]:
        """Runs them together, for threads; deltas come as they are made. Closing it early ends the requests."""
        pending = _by_request(generations)
        with _closing_all(generations):
            yield from _empty_deltas(generations)
            if not pending:
                return
            requests = [generation.request for generation in pending.values()]
            with contextlib.closing(self.client.stream_sync(*requests)) as outputs:
                for output in outputs:
                    yield from self._take(pending, [output])
                    if not pending:
                        return

    async def arun(self, generations: Sequence[Generation], *, whole: bool = False) -> AsyncGenerator[Deltas, None]:
        """`run` for an event loop: what a step has brought them, all in one list. Cancelling it ends the requests.

        `whole`: one delta for each, when it is finished; the event loop is not woken before.
        """
        pending = _by_request(generations)
        with _closing_all(generations):
            if deltas := _empty_deltas(generations):
                yield deltas
            if not pending:
                return
            requests = [generation.request for generation in pending.values()]
            with self.client.open(*requests, whole=whole) as inbox:
                while pending:
                    yield self._take(pending, await inbox.take())

    async def arun_whole(self, generations: Sequence[Generation]) -> list[TextDelta]:
        """One delta for each generation, when all are finished; cancelling it ends the requests."""
        parts: list[list[TextDelta]] = [[] for _ in generations]
        whole = not any(generation.wants_each_step for generation in generations)
        async with contextlib.aclosing(self.arun(generations, whole=whole)) as steps:
            async for deltas in steps:
                for generation, delta in deltas:
                    parts[generation.index].append(delta)
        return [merge(deltas) for deltas in parts]

    def _take(self, pending: dict[str, Generation], outputs: Sequence[TokenOutput]) -> Deltas:
        """Hands outputs to their generations, and ends those requests whose reader has found a stop string."""
        deltas: Deltas = []
        for request_id, own in _by_sender(outputs).items():
            generation = pending.get(request_id)
            if generation is None:
                continue
            deltas.append((generation, generation.take(own)))
            if generation.is_finished:
                del pending[request_id]
                if own[-1].finish_reason is None:
                    self.client.abort(request_id)
        return deltas

    def close(self) -> None:
        """Ends what runs and frees the memory; may be called twice."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dtype_of(use_amp: bool, bf16: bool) -> str | None:
    """The `dtype` setting of the seed's two switches; None = what the configuration says."""
    if not use_amp:
        return "float32"
    return "bfloat16" if bf16 else None


def _served_name(config: Config) -> str | None:
    """As it was asked for, if by a name; None = the file's."""
    from roseinfer.catalog import CATALOG

    return config.served_model_name or (config.model if config.model in CATALOG else None)


def _one_each(
    prompts: Sequence[str], params: GenerateParams | Sequence[GenerateParams] | None
) -> Sequence[GenerateParams]:
    if params is None or isinstance(params, GenerateParams):
        return [params or GenerateParams()] * len(prompts)
    if len(params) != len(prompts):
        raise InvalidRequestError(f"there are {len(prompts)} prompts and {len(params)} params", "params")
    return params


def _by_request(generations: Iterable[Generation]) -> dict[str, Generation]:
    """Those that an engine has to run."""
    return {generation.request.request_id: generation for generation in generations if not generation.is_empty}


def _by_sender(outputs: Sequence[TokenOutput]) -> Mapping[str, Sequence[TokenOutput]]:
    if len(outputs) == 1:
        return {outputs[0].request_id: outputs}
    by_sender: dict[str, list[TokenOutput]] = {}
    for output in outputs:
        by_sender.setdefault(output.request_id, []).append(output)
    return by_sender


def _empty_deltas(generations: Iterable[Generation]) -> Deltas:
    return [(generation, generation.take_nothing()) for generation in generations if generation.is_empty]


@contextlib.contextmanager
def _closing_all(generations: Iterable[Generation]) -> Iterator[None]:
    try:
        yield
    finally:
        for generation in generations:
            generation.close()
