"""The running program: a step's inputs go to the device in one copy, its results come back in one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from roseinfer.backends import ProgramOptions
from roseinfer.backends.cuda.compiler import Compiled
from roseinfer.backends.cuda.device import device_name, lost_device
from roseinfer.backends.cuda.graphs import CudaCapture, DecodeGraphs
from roseinfer.backends.cuda.inputs import NO_POSITION, InputStage, StepInputs, is_decode, padded_decode
from roseinfer.backends.cuda.kernels.pending_tokens import fill_pending_tokens
from roseinfer.backends.cuda.kv_cache import KvCache
from roseinfer.backends.cuda.sampler import PendingSamples, Sampler
from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs, ScoreInputs, UInt64Array
from roseinfer.core.errors import DeviceLostError, EngineError

STAGE_NUMBERS = 1 << 16  # int32 of a step's inputs, until one needs more
# Tokens: one for each tile size of linears, with and without split columns, so that kernels are compiled beforehand.
WARM_UP_SIZES = (1, 17, 33, 65, 129, 257, 1024, 2048)


class Milestones:
    """Places in a step that a watchdog is told of when the device has passed them."""

    def __init__(self, counter: UInt64Array | None) -> None:
        self._counter = counter
        self._events: list[torch.cuda.Event] = []

    def set(self, *, is_cuda: bool) -> None:
        """Behind what was launched last; the host gets on, too."""
        self.count()
        if is_cuda and self._counter is not None:
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)

    def wait(self) -> None:
        """Until the device has passed all of them."""
        for event in self._events:
            event.synchronize()
            self.count()
        self._events.clear()

    def count(self) -> None:
        if self._counter is not None:
            self._counter[0] += 1


@dataclass(frozen=True)
class Launched:
    """A step on its way through the device."""

    samples: PendingSamples | None
    scores: PendingSamples | None
    milestones: Milestones

    def collect(self) -> tuple[SampleOutput | None, SampleOutput | None]:
        """Samples and scores, as soon as they are there."""
        with lost_device():
            self.milestones.wait()
            samples = self.samples.collect() if self.samples else None
            scores = self.scores.collect() if self.scores else None
        self.milestones.count()
        return samples, scores


class CudaProgram:
    """`roseinfer.backends.LookaheadProgram` on one GPU. All its work lies on one stream, in the order of the calls."""

    isa = ""

    def __init__(
        self,
        compiled: Compiled,
        cache: KvCache,
        options: ProgramOptions,
        vocab_size: int,
        weight_bytes: int,
        block_bytes: int,
        device: torch.device,
    ) -> None:
        self.vocab_size = vocab_size
        self.device_name = device_name(device)
        self._compiled: Compiled | None = compiled
        self._cache = cache
        self._options = options
        self._weight_bytes = weight_bytes
        self._block_bytes = block_bytes
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._stage = InputStage(device, STAGE_NUMBERS)
        self._graphs = DecodeGraphs(CudaCapture() if self._stream else None)
        self._sampler = Sampler(vocab_size, device, options.max_logit_rows)
        self._milestones = Milestones(options.progress_counter)
        self._num_logits = 0
        self._last_samples: torch.Tensor | None = None
        if self._stream:
            torch.cuda.synchronize(device)

    # -- steps ----------------------------------------------------------------------------------------------

    def forward(self, inputs: ForwardInputs) -> None:
        with self._on_stream():
            self._forward(inputs)

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        with self._on_stream():
            pending = self._sample(inputs)
            self._milestones.wait()
            return pending.collect()

    def score(self, inputs: ScoreInputs) -> SampleOutput:
        with self._on_stream():
            pending = self._sampler.score(self._logits(), inputs)
            self._milestones.wait()
            return pending.collect()

    def launch(self, forward: ForwardInputs, sampling: SamplingInputs | None, score: ScoreInputs | None) -> Launched:
        """All of a step without waiting for any of it."""
        with self._on_stream():
            self._forward(forward)
            scores = self._sampler.score(self._logits(), score) if score else None
            samples = self._sample(sampling) if sampling else None
        return Launched(samples, scores, self._milestones)

    def logits(self) -> Float32Array:
        with self._on_stream():
            logits: Float32Array = self._logits().to("cpu", copy=True).numpy()
        return logits

    # -- memory ---------------------------------------------------------------------------------------------

    def reserve(self, num_blocks: int) -> int:
        """Gets memory for the first `num_blocks` blocks, as far as the device grants it; says how many have it."""
        with self._on_stream():
            return self._cache.reserve(num_blocks)

    def memory(self) -> dict[str, int]:
        """Bytes: of the weights as packed, of the KV cache at the most, of activations and what kernels share."""
        assert self._compiled is not None
        return {
            "weights": self._weight_bytes,
            "kv_cache": self._cache.num_blocks * self._block_bytes,
            "activations": self._compiled.activation_bytes,
        }

    def close(self) -> None:
        """Waits for what is under way, and gives the device's memory back."""
        with contextlib.suppress(DeviceLostError), lost_device():
            if self._stream:
                self._stream.synchronize()
        self._graphs.clear()
        self._compiled = self._last_samples = None
        self._cache.clear()
        self._sampler = Sampler(self.vocab_size, torch.device("cpu"), 1)  # which takes nothing
        if self._stream:
            torch.cuda.empty_cache()

    # -- parts ----------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Compiles the kernels, on tokens that do not exist. Triton keeps them on disk for the next start."""
        most = self._options.max_batch_tokens
        for size in sorted({min(size, most) for size in (*WARM_UP_SIZES, most)}):
            self.forward(_nothing(size, min(size, self._options.max_logit_rows)))
        self._graphs.clear()
        with self._on_stream():
            self._sampler.warm_up()
            nothing = torch.zeros(1, dtype=torch.int32, device=self._device)
            fill_pending_tokens(nothing, nothing)
        if self._stream:
            self._stream.synchronize()

    def _forward(self, inputs: ForwardInputs) -> None:
        self._check_blocks(inputs)
        self._num_logits = len(inputs.logit_rows)
        is_uniform = is_decode(inputs)
        if is_uniform:
            inputs = padded_decode(inputs, min(self._options.max_batch_tokens, self._options.max_logit_rows))
        assert self._compiled is not None
        self._milestones = Milestones(self._options.progress_counter)
        step, has_moved = self._stage.put(inputs, self._compiled.tile_sizes)
        if has_moved:
            self._graphs.clear()
        if self._last_samples is not None and inputs.token_ids.min(initial=0) < 0:
            fill_pending_tokens(step.token_ids, self._last_samples)
        if is_uniform:
            self._graphs.run((step.num_tokens, step.context), lambda: self._run(step))
        else:
            self._run(step, has_milestones=True)

    def _run(self, step: StepInputs, *, has_milestones: bool = False) -> None:
        """Steps of many tokens may take seconds, as kernels do that are compiled; both must be seen to get on."""
        assert self._compiled is not None
        for _, operation in self._compiled.operations:
            operation(step)
            self._milestones.set(is_cuda=has_milestones and self._stream is not None)

    def _sample(self, inputs: SamplingInputs) -> PendingSamples:
        pending = self._sampler.sample(self._logits(), inputs)
        self._last_samples = pending.token_ids_device
        return pending

    def _logits(self) -> torch.Tensor:
        assert self._compiled is not None
        return self._compiled.logits.memory[: self._num_logits]

    def _check_blocks(self, inputs: ForwardInputs) -> None:
        """An address that is not there would be written to."""
        num_blocks = int(inputs.block_tables.max(initial=-1)) + 1
        if num_blocks > self._cache.capacity and self._cache.reserve(num_blocks) < num_blocks:
            raise EngineError(
                f"there is memory for {self._cache.capacity} KV blocks, and block {num_blocks - 1} is used"
            )

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with lost_device(), torch.inference_mode(), stream:
            yield


def _nothing(num_tokens: int, num_logits: int) -> ForwardInputs:
    """A step of tokens that do not exist: it stores nothing and sees nothing."""
    nothing = np.full(num_tokens, NO_POSITION, dtype=np.int32)
    return ForwardInputs(
        token_ids=np.zeros(num_tokens, dtype=np.int32),
        positions=nothing,
        row_offsets=np.arange(num_tokens + 1, dtype=np.int32),
        block_tables=nothing[:, None],
        logit_rows=np.arange(num_logits, dtype=np.int32),
    )
