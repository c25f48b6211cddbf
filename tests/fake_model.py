"""A model of bytes without weights, for everything above the engine: real client, engine and scheduler around it.

It recites `STORY`, whose character at a position depends on the position alone, and ends after a full stop;
sampled it wanders off into letters.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from roseinfer.backends import sampling
from roseinfer.cache.block_pool import BlockPool
from roseinfer.core.batch import Float32Array, ForwardInputs, SampleOutput, SamplingInputs, ScoreInputs
from roseinfer.engine.client import EngineClient
from roseinfer.engine.engine import Engine
from roseinfer.inference_engine import InferenceEngine
from roseinfer.scheduler.scheduler import Scheduler
from roseinfer.text import Tokenizer
from roseinfer.text.vocabulary import Vocabulary

STORY = "Señor Ünal zahlte 5 € für 😀 und ging. "
EOS, BOS = 256, 257
VOCAB_SIZE = 258
MAX_MODEL_LEN = 512


class RecitingProgram:
    """`step_seconds` slows it down; `forward` raises `failure` where it is set."""

    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self.step_seconds = 0.0
        self.failure: Exception | None = None
        self.num_rows: list[int] = []  # of each step
        self.is_closed = False
        self._logits = np.empty((0, VOCAB_SIZE), dtype=np.float32)

    def forward(self, inputs: ForwardInputs) -> None:
        time.sleep(self.step_seconds)
        if self.failure is not None:
            raise self.failure
        self.num_rows.append(len(inputs.row_offsets) - 1)
        last_ids = inputs.token_ids[inputs.logit_rows].tolist()
        positions = (inputs.positions[inputs.logit_rows] + 1).tolist()
        rows = [_logits(last_id, position) for last_id, position in zip(last_ids, positions, strict=True)]
        self._logits = np.array(rows, dtype=np.float32).reshape(-1, VOCAB_SIZE)

    def sample(self, inputs: SamplingInputs) -> SampleOutput:
        return sampling.sample(self._logits, inputs)

    def score(self, inputs: ScoreInputs) -> SampleOutput:
        return sampling.score(self._logits, inputs)

    def logits(self) -> Float32Array:
        return self._logits

    def memory(self) -> dict[str, int]:
        return {"weights": 0, "kv_cache": 0, "activations": 0}

    def close(self) -> None:
        self.is_closed = True


def _next_id(last_id: int, position: int) -> int:
    story = STORY.encode()
    return EOS if last_id == ord(".") else story[position % len(story)]


def _logits(last_id: int, position: int) -> Float32Array:
    """The story's next character is likeliest, other letters nearly so, and the end is certain where it comes."""
    logits = np.full(VOCAB_SIZE, -30, dtype=np.float32)
    logits[ord("a") : ord("z") + 1] = 3
    next_id = _next_id(last_id, position)
    logits[next_id] = 30 if next_id == EOS else 4
    return logits


class ByteEncoder:
    def encode(self, text: str, parse_special: bool) -> list[int]:
        return list(text.encode())


def _token_bytes(token_id: int) -> bytes:
    return {EOS: b"<eos>", BOS: b"<bos>"}.get(token_id) or bytes([token_id])


def byte_tokenizer() -> Tokenizer:
    vocabulary = Vocabulary(VOCAB_SIZE, _token_bytes, special_ids=(EOS, BOS))
    return Tokenizer(
        ByteEncoder(),
        vocabulary,
        bos_id=BOS,
        eos_ids=(EOS,),
        pad_id=None,
        prefix_ids=(BOS,),
        add_prefix=False,
        strip_space=False,
        max_token_chars=1,
    )


def fake_engine(
    program: RecitingProgram | None = None, *, max_running: int = 64, max_queue: int = 256, seed: int | None = None
) -> InferenceEngine:
    """A running engine, to be closed by the caller."""
    scheduler = Scheduler(
        block_pool=BlockPool(max_running * MAX_MODEL_LEN // 16, 16),
        prefix_cache=None,
        max_batch_tokens=256,
        max_running=max_running,
        max_model_len=MAX_MODEL_LEN,
    )
    client = EngineClient(Engine(program or RecitingProgram(), scheduler), (EOS,), max_queue=max_queue)
    client.start()
    info: Any = SimpleNamespace(name="fake", max_model_len=MAX_MODEL_LEN, memory=RecitingProgram().memory())
    return InferenceEngine.from_parts(client, byte_tokenizer(), info, seed=seed)


def recite(prompt: str, max_new_tokens: int, *, stop_on_eos: bool = True) -> str:
    """What the model says behind the prompt, worked out without an engine."""
    ids = list(prompt.encode()) or [BOS]
    written: list[int] = []
    for position in range(len(ids), len(ids) + max_new_tokens):
        next_id = _next_id((ids + written)[-1], position)
        if next_id == EOS and stop_on_eos:
            break
        written.append(next_id)
    return bytes(token_id for token_id in written if token_id < EOS).decode("utf-8", "replace")
