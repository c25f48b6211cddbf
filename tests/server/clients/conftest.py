"""SmolLM2 behind live servers, once for all client libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roseinfer.inference_engine import InferenceEngine
from roseinfer.text.chat_template import ChatTemplate
from tests.server.live import serve

TOOL_TEMPLATE = Path(__file__).parents[2] / "text" / "chat_templates" / "hermes.jinja"
CONTROL_NAMES = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class RealServer:
    url: str  # ends with /v1, as clients want it
    engine: InferenceEngine


@pytest.fixture(scope="package")
def real_engine(smollm2_path: Path) -> Iterator[InferenceEngine]:
    with InferenceEngine(str(smollm2_path), served_model_name="smollm2", max_model_len=2048) as engine:
        yield engine


@pytest.fixture(scope="module")
def real_server(real_engine: InferenceEngine) -> Iterator[RealServer]:
    with serve(real_engine) as url:
        yield RealServer(f"{url}/v1", real_engine)


@pytest.fixture
def tool_server(real_engine: InferenceEngine, real_server: RealServer) -> Iterator[RealServer]:
    """The same with a chat template that knows tools, which the model's own does not."""
    own = real_engine.tokenizer.chat_template
    assert own is not None
    real_engine.tokenizer.chat_template = ChatTemplate(
        own.source,
        tool_source=TOOL_TEMPLATE.read_text(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        control_names=CONTROL_NAMES,
    )
    yield real_server
    real_engine.tokenizer.chat_template = own
