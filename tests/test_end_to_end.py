"""The doors with a real, tiny model behind them: the seed's torch file and a tokenizer.json of bytes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, models

from roseinfer.core.errors import DeviceError, InvalidRequestError
from roseinfer.engine import InferenceEngine
from roseinfer.engine.device import has_driver
from roseinfer.server import create_app
from tests.byte_tokenizer import save_byte_tokenizer
from tests.tiny_models import TinyModel

PROMPTS = ["Hello", "naïve café", "x"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["<|endoftext|>"])


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_model("torch-file")


@pytest.fixture(scope="module")
def engine(model: TinyModel, tokenizer: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(
        checkpoint_path=str(model.path), tokenizer_name=str(tokenizer), device="cpu", use_amp=False, threads=1
    ) as engine:
        yield engine


def greedy(model: TinyModel, tokenizer: Path, prompt: str, max_new_tokens: int) -> str:
    """The reference model's choice, one whole forward per token."""
    encoder = Tokenizer.from_file(str(tokenizer))
    ids = encoder.encode(prompt).ids
    for _ in range(max_new_tokens):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return encoder.decode(ids)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_the_references_choice(
    engine: InferenceEngine, model: TinyModel, tokenizer: Path, prompt: str
) -> None:
    text = engine.generate(prompt=prompt, max_new_tokens=24, stop_on_eos=False)
    assert text == greedy(model, tokenizer, prompt, 24)


def test_server_and_library_agree(engine: InferenceEngine) -> None:
    async def ask() -> list[str]:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [{"prompt": p, "max_new_tokens": 16, "do_sample": True, "seed": 5} for p in PROMPTS]
            replies = await asyncio.gather(*[client.post("/generate", json=body) for body in bodies])
            return [reply.json()["text"] for reply in replies]

    alone = [engine.generate(prompt, max_new_tokens=16, do_sample=True, seed=5) for prompt in PROMPTS]
    assert asyncio.run(ask()) == alone


def test_a_tokenizer_that_knows_more_than_the_model_is_warned_of(
    model: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(5000)}, unk_token="w0"))
    words.save(str(tmp_path / "tokenizer.json"))
    with InferenceEngine(str(model.path), str(tmp_path), threads=1) as engine:
        assert "the tokenizer has 5000 tokens, the model only " in caplog.text
        with pytest.raises(InvalidRequestError, match="4999 is not in the vocabulary"):
            engine.generate("w4999")


def test_inspect_tells_what_a_model_takes(model: TinyModel, tokenizer: Path) -> None:
    command = [sys.executable, "-m", "roseinfer", "inspect", str(model.path), "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for said in [
        "architecture  gpt2",
        "container     torch_file",
        "device        cpu",
        "KV cache up to ",
        "activations ",
    ]:
        assert said in done.stdout


@pytest.mark.skipif(has_driver(), reason="there is a GPU driver")
def test_no_cuda_is_one_clear_error(model: TinyModel, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(DeviceError, match="--device cpu"):
        InferenceEngine(str(model.path), str(tokenizer), device="cuda")


@pytest.mark.skipif(has_driver(), reason="there is a GPU driver")
@pytest.mark.parametrize(
    "command",
    [
        ["roseinfer.server", "--device", "cuda", "--bf16", "--host", "127.0.0.1", "--checkpoint-path"],
        ["roseinfer.server", "--device", "cuda", "--no-amp", "--host", "127.0.0.1", "--checkpoint-path"],
        ["roseinfer", "serve", "--device", "cuda"],
    ],
    ids=["bf16", "no-amp", "serve"],
)
def test_no_cuda_is_one_line_of_the_command(command: list[str], tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["XDG_CACHE_HOME"] = str(tmp_path)  # where nothing is: a model would have to be fetched
    done = subprocess.run(
        [sys.executable, "-m", *command, "smollm2-135m"], capture_output=True, text=True, timeout=60, env=environ
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: device cuda: ")
    assert done.stderr.endswith("or use --device cpu\n")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
