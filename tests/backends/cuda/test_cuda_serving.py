"""The doors with `--device cuda`, in this process and in the engine's own, which is killed on the way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from roseinfer.engine import InferenceEngine
from roseinfer.server import create_app
from tests.byte_tokenizer import save_byte_tokenizer
from tests.tiny_models import TinyModel

SETTINGS = {"device": "cuda", "use_amp": False, "max_model_len": 64, "max_running": 4}
NUM_NEW = 6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_model("torch-file")


def greedy(model: TinyModel, tokenizer: Path, prompt: str) -> str:
    encoder = Tokenizer.from_file(str(tokenizer))
    ids = encoder.encode(prompt).ids
    for _ in range(NUM_NEW):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return encoder.decode(ids)


def test_the_server_answers_as_the_reference_does(model: TinyModel, tokenizer: Path) -> None:
    async def ask(engine: InferenceEngine) -> list[str]:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [{"prompt": p, "max_new_tokens": NUM_NEW, "stop_on_eos": False} for p in ("Hello", "café")]
            replies = await asyncio.gather(*[client.post("/generate", json=body) for body in bodies])
            return [reply.json()["text"] for reply in replies]

    with InferenceEngine(str(model.path), str(tokenizer), **SETTINGS) as engine:
        assert engine.info.device
        assert engine.info.isa == ""
        assert asyncio.run(ask(engine)) == [greedy(model, tokenizer, prompt) for prompt in ("Hello", "café")]


def test_a_killed_engine_loses_nothing(model: TinyModel, tokenizer: Path) -> None:
    """Nothing of the device's memory outlives it: the next one computes what there was again."""
    with InferenceEngine(str(model.path), str(tokenizer), engine_process=True, **SETTINGS) as engine:
        pieces = engine.stream_generate(prompt="Hello", max_new_tokens=NUM_NEW, stop_on_eos=False)
        text = next(pieces)
        host = engine.client._host
        os.kill(host.pid, signal.SIGKILL)
        text += "".join(pieces)
        assert host.num_restarts == 1
    assert "Hello" + text == greedy(model, tokenizer, "Hello")
