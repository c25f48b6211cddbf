"""The library's door: text in, text out. The server goes through it as well, so both give the same answers.

engine = InferenceEngine(checkpoint_path="smollm2-135m")
print(engine.generate(prompt="The capital of France is", max_new_tokens=16))
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from roseinfer.core.config import Config, load_config
from roseinfer.core.errors import ContextLengthError, EngineError, InvalidRequestError
from roseinfer.core.messages import AddRequest, TokenOutput
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.checks import prompt_too_long

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from roseinfer.engine.client import EngineClient
    from roseinfer.engine.loader import ModelInfo
    from roseinfer.text import Detokenizer, Tokenizer

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

    def sampling_params(self, seed: int | None = None) -> SamplingParams:
        """The same for the engine; `seed` is for requests that name none. Raises as `check` does."""
        for name in ("stop_on_eos", "do_sample"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false, got {getattr(self, name)!r}", name)
        try:
            params = SamplingParams(
                max_tokens=DEFAULT_MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=seed if self.seed is None else self.seed,
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


class Generation:
    """One request, tokenised and checked, ready to be run once."""

    def __init__(self, prompt: str, request: AddRequest, detokenizer: Detokenizer) -> None:
        self.prompt = prompt
        self.request = request
        self.is_finished = self.is_empty  # no text comes any more
        self._detokenizer = detokenizer

    @property
    def is_empty(self) -> bool:
        return self.request.max_tokens == 0

    def text_of(self, outputs: Sequence[TokenOutput]) -> str:
        """The text that these outputs make whole; may be empty. Raises EngineError where the request was ended."""
        last = outputs[-1]
        if last.finish_reason in ("error", "abort"):
            raise EngineError(last.error or "the engine was stopped before the request was finished")
        ids = [token_id for output in outputs for token_id in output.token_ids]
        if last.finish_reason is None:
            return self._detokenizer.push(ids)
        self.is_finished = True
        return self._detokenizer.push(ids[:-1] if last.stop_token_id is not None else ids) + self._detokenizer.finish()


class InferenceEngine:
    """A model that is loaded and running. May be called from several threads at once; what they ask is batched.

    Args:
        checkpoint_path: a .gguf file, a safetensors folder, a torch file, a catalogue name or a hub id.
        tokenizer_name: a tokenizer.json, a folder, a .gguf file or a hub id; None = the checkpoint's own.
        device: auto, cpu or cuda.
        use_amp: False computes in float32.
        bf16: True computes in bfloat16, unless `use_amp` is off.
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
        **settings: object,
    ) -> None:
        chosen = None if device == "auto" else device
        flags = {"model": checkpoint_path, "tokenizer": tokenizer_name, "device": chosen, **settings}
        flags.setdefault("dtype", dtype_of(use_amp, bf16))
        config = load_config(flags)
        self._start(*_load(config, None), config.seed, _served_name(config))

    @classmethod
    def from_config(cls, config: Config, say: Callable[[str], None] | None = None) -> Self:
        """`say` gets a line about each thing that takes time."""
        engine = cls.__new__(cls)
        engine._start(*_load(config, say), config.seed, _served_name(config))
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
            return list(pool.map(lambda generation: generation.prompt + "".join(self.stream(generation)), generations))
        finally:
            pool.shutdown(cancel_futures=True)

    def prepare(self, prompt: str, params: GenerateParams) -> Generation:
        """Tokenises and checks; nothing is queued yet. Takes milliseconds for a long prompt.

        Raises InvalidRequestError naming the field, ContextLengthError with both counts.
        """
        if not isinstance(prompt, str):
            raise InvalidRequestError(f"prompt must be a string, got {type(prompt).__name__}", "prompt")
        sampling = params.sampling_params(self._seed)  # a prompt is tokenised only if the rest is sound
        self._check_length(prompt)
        ids = self.tokenizer.encode_prompt(prompt)
        request = self.client.make_request(ids, sampling)
        if params.max_new_tokens is not None and request.max_tokens < params.max_new_tokens:  # cut to what fits
            raise _too_many_tokens(len(ids), params.max_new_tokens, self.client.max_model_len)
        return Generation(prompt, request, self.tokenizer.detokenizer())

    def _check_length(self, prompt: str) -> None:
        """Refuses what cannot fit, however it is tokenised, before any work is done on it."""
        at_least, limit = self.tokenizer.min_num_tokens(prompt), self.client.max_model_len
        if at_least >= limit:
            raise prompt_too_long(f"at least {at_least}", limit)

    def stream(self, generation: Generation) -> Iterator[str]:
        """Runs it; closing the iterator early ends the request."""
        if generation.is_empty:
            return
        with contextlib.closing(self.client.stream_sync(generation.request)) as outputs:
            for output in outputs:
                if piece := generation.text_of([output]):
                    yield piece

    async def astream(self, generation: Generation) -> AsyncGenerator[str, None]:
        """`stream` for an event loop; closing or cancelling it ends the request. Who is slow gets larger pieces."""
        if generation.is_empty:
            return
        with self.client.open(generation.request) as inbox:
            while outputs := await inbox.take():
                if piece := generation.text_of(outputs):
                    yield piece

    async def acomplete(self, generation: Generation) -> str:
        """All the pieces of `astream` in one; cancelling it ends the request."""
        if generation.is_empty:
            return ""
        with self.client.open(generation.request, whole=True) as inbox:
            return generation.text_of(await inbox.take())

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


def _load(config: Config, say: Callable[[str], None] | None) -> tuple[EngineClient, Tokenizer, ModelInfo]:
    # Imported here, because who only puts an app around a given engine needs none of them.
    from roseinfer.catalog import resolve_model, resolve_tokenizer
    from roseinfer.checkpoints import open_checkpoint
    from roseinfer.engine.client import EngineClient
    from roseinfer.engine.loader import build_engine, check_device
    from roseinfer.loading_bar import LoadingBar
    from roseinfer.text import load_tokenizer

    check_device(config.device)
    with open_checkpoint(resolve_model(config.model, config.models_dir, say)) as checkpoint:
        named = config.tokenizer
        tokenizer = load_tokenizer(resolve_tokenizer(named, config.models_dir, say) if named else checkpoint)
        with LoadingBar() if say else contextlib.nullcontext() as progress:
            engine, info = build_engine(
                checkpoint,
                device=config.device,
                dtype=config.dtype,
                kv_dtype=config.kv_dtype,
                num_threads=config.threads,
                isa=config.isa,
                max_model_len=config.max_model_len,
                max_batch_tokens=config.max_batch_tokens,
                max_running=config.max_running,
                kv_cache_memory=config.kv_cache_memory,
                prefix_cache=config.prefix_cache,
                progress=progress,
            )
    if tokenizer.vocab_size > info.vocab_size:
        logger.warning(
            "the tokenizer has %d tokens, the model only %d; is it the model's own?",
            tokenizer.vocab_size,
            info.vocab_size,
        )
    eos_ids = sorted({i for i in (*info.eos_ids, *tokenizer.eos_ids) if i < info.vocab_size})
    client = EngineClient(engine, eos_ids=eos_ids, max_queue=config.max_queue)
    client.start()
    return client, tokenizer, info


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


def _too_many_tokens(num_prompt_tokens: int, max_new_tokens: int, max_model_len: int) -> ContextLengthError:
    return ContextLengthError(
        f"the prompt has {num_prompt_tokens} tokens and max_new_tokens is {max_new_tokens}, together "
        f"{num_prompt_tokens + max_new_tokens}, but the context length is {max_model_len} tokens",
        "max_new_tokens",
    )
