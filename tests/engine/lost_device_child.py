"""An engine's process whose device is lost in the middle of a step, and there again after the restart."""

from __future__ import annotations

import time

from roseinfer.core.batch import ForwardInputs
from roseinfer.core.errors import DeviceLostError
from roseinfer.engine.child import serve_child
from roseinfer.engine.engine import Engine
from roseinfer.engine.frames import LoadModel
from roseinfer.engine.model_info import ModelInfo
from tests.engine.fake_child import STEP_SECONDS, VOCAB_SIZE, FakeServer, fake_info
from tests.fake_engine import make_scheduler
from tests.fake_grammars import FakeCompiler
from tests.fake_lookahead import FakeLaunched, FakeLookaheadProgram

NUM_STEPS = 10


class LosingProgram(FakeLookaheadProgram):
    steps_left = 0  # until the device is lost; 0: it is not

    def finish(self, launched: FakeLaunched) -> None:
        super().finish(launched)
        self.lose()

    def forward(self, inputs: ForwardInputs) -> None:
        super().forward(inputs)
        self.lose()

    def lose(self) -> None:
        time.sleep(STEP_SECONDS)
        self.steps_left -= 1
        if self.steps_left == 0:
            raise DeviceLostError("the device is gone")


class LosingServer(FakeServer):
    def build(self, load: LoadModel) -> tuple[Engine, ModelInfo]:
        scheduler = make_scheduler(num_blocks=256, max_batch_tokens=64, max_running=load.max_running)
        program = LosingProgram(
            is_lazy=True,
            num_blocks=256,
            block_size=scheduler.block_pool.block_size,
            max_batch_tokens=64,
            max_logit_rows=load.max_running,
            vocab_size=VOCAB_SIZE,
        )
        program.steps_left = 0 if load.is_restart else NUM_STEPS
        return Engine(program, scheduler, FakeCompiler(VOCAB_SIZE)), fake_info("model")  # type: ignore[arg-type]


def main(socket_fd: int, progress_fd: int, cache_fd: int | None) -> None:
    serve_child(LosingServer, socket_fd, progress_fd)
