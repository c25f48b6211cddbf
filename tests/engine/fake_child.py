"""An engine's process without a model: the fake program behind the real border. Some tokens end or hang it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from roseinfer.core.batch import ForwardInputs
from roseinfer.core.errors import CheckpointError
from roseinfer.engine.child import EngineServer, serve_child
from roseinfer.engine.engine import Engine
from roseinfer.engine.frames import LoadModel
from roseinfer.engine.model_info import ModelInfo
from tests.fake_engine import make_scheduler
from tests.fake_grammars import FakeCompiler
from tests.fake_program import FakeProgram

VOCAB_SIZE = 50
DYING_TOKEN = 40
HANGING_TOKEN = 41
RAISING_TOKEN = 42
NAN_TOKEN = 43
FAULTY_TOKENS = (DYING_TOKEN, HANGING_TOKEN, RAISING_TOKEN, NAN_TOKEN)
STEP_SECONDS = 0.002


class FaultyProgram(FakeProgram):
    def forward(self, inputs: ForwardInputs) -> None:
        if DYING_TOKEN in inputs.token_ids:
            os._exit(3)
        while HANGING_TOKEN in inputs.token_ids:
            time.sleep(1)
        time.sleep(STEP_SECONDS)
        super().forward(inputs)


class FakeServer(EngineServer):
    """The "model" is a text file that holds its name."""

    def build(self, load: LoadModel) -> tuple[Engine, ModelInfo]:
        path = Path(os.fsdecode(load.path))
        if not path.exists():
            raise CheckpointError(f"{path} is not there")
        name = path.read_text()
        if name == "stillborn":
            os._exit(4)
        assert load.max_batch_tokens is not None
        scheduler = make_scheduler(num_blocks=256, max_batch_tokens=load.max_batch_tokens, max_running=load.max_running)
        program = FaultyProgram(
            num_blocks=256,
            block_size=scheduler.block_pool.block_size,
            max_batch_tokens=load.max_batch_tokens,
            max_logit_rows=load.max_running,
            vocab_size=VOCAB_SIZE,
            nan_token=NAN_TOKEN,
            poison_token=RAISING_TOKEN,
        )
        return Engine(program, scheduler, FakeCompiler(VOCAB_SIZE)), fake_info(name)  # type: ignore[arg-type]


def fake_info(name: str) -> ModelInfo:
    return ModelInfo(
        name=name,
        file=name,
        container="none",
        architecture="fake",
        formats={"f32": (1, 4)},
        num_parameters=1,
        vocab_size=VOCAB_SIZE,
        max_model_len=128,
        eos_ids=(),
        memory={"weights": 0, "kv_cache": 0, "activations": 0},
        device="cpu",
        isa="none",
        dtype="auto",
        weight_dtype="auto",
        kv_dtype="float32",
        fast=False,
        digest=name,
    )


def main(socket_fd: int, progress_fd: int, cache_fd: int | None) -> None:
    serve_child(FakeServer, socket_fd, progress_fd)
