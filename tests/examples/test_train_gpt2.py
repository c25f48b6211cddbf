"""The example trains, and what it writes is the checkpoint format that roseinfer serves."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from roseinfer.checkpoints import open_checkpoint
from roseinfer.engine import InferenceEngine
from roseinfer.models import load_model
from tests.harness import compile_model, teacher_forced_logits
from tests.text_samples import real_text

ROOT = Path(__file__).parents[2]
LAYERS, HEADS, WIDTH, CONTEXT, VOCAB = 2, 2, 32, 64, 400
SIZES = f"--layers {LAYERS} --heads {HEADS} --width {WIDTH} --context {CONTEXT} --vocab-size {VOCAB} --batch-size 8"
QUICK = [*SIZES.split(), "--lr", "1e-2", "--log-every", "5", "--no-bf16"]


def _load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_gpt2", ROOT / "examples" / "train_gpt2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


train_gpt2 = _load_example()


@dataclass
class Run:
    """One call of the example's `main`."""

    out: Path
    log: str

    def checkpoint(self) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(self.out / "model.pt", weights_only=True)
        return checkpoint

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.out / "tokenizer.json"))

    def model(self) -> Any:
        """The example's own module with the trained weights."""
        checkpoint = self.checkpoint()
        model = train_gpt2.GPT(train_gpt2.ModelConfig(**checkpoint["config"]))
        model.load_state_dict(checkpoint["model"])
        return model.eval()

    def losses(self) -> list[float]:
        return [float(loss) for loss in re.findall(r"^step .* loss ([\d.]+)", self.log, flags=re.MULTILINE)]


def run_example(out: Path, *flags: str) -> Run:
    text = out.with_suffix(".txt")
    text.write_text(real_text(30_000), encoding="utf-8")
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        train_gpt2.main(["--text", str(text), "--out", str(out), *QUICK, *flags])
    return Run(out, log.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_example(tmp_path_factory.mktemp("example") / "out", "--steps", "40")


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """The format's names, written out here independently of the example."""
    block = {
        "ln1.weight": (WIDTH,),
        "ln1.bias": (WIDTH,),
        "attn.qkv_proj.weight": (3 * WIDTH, WIDTH),
        "attn.qkv_proj.bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH),
        "attn.out_proj.bias": (WIDTH,),
        "ln2.weight": (WIDTH,),
        "ln2.bias": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        "mlp.fc2.bias": (WIDTH,),
    }
    return {
        "token_embedding.weight": (VOCAB, WIDTH),
        "position_embedding.weight": (CONTEXT, WIDTH),
        **{f"blocks.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()},
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
        "lm_head.weight": (VOCAB, WIDTH),
    }


def test_the_checkpoint_has_the_formats_names_and_shapes(trained: Run) -> None:
    checkpoint = trained.checkpoint()
    assert set(checkpoint) == {"model", "config", "optimizer", "step"}
    assert {name: tuple(t.shape) for name, t in checkpoint["model"].items()} == expected_shapes()
    assert {t.dtype for t in checkpoint["model"].values()} == {torch.float32}
    assert checkpoint["model"]["lm_head.weight"].data_ptr() == checkpoint["model"]["token_embedding.weight"].data_ptr()
    assert checkpoint["step"] == 40
    assert checkpoint["optimizer"]["state"]


def test_the_config_has_the_formats_keys(trained: Run) -> None:
    config = trained.checkpoint()["config"]
    assert type(config) is dict
    assert config == {
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "d_model": WIDTH,
        "d_ff": 4 * WIDTH,
        "dropout": 0.0,
        "use_tensor_parallel": False,
        "use_activation_checkpoint": False,
    }


def test_the_tokenizer_gives_every_text_back(trained: Run) -> None:
    tokenizer = trained.tokenizer()
    assert tokenizer.get_vocab_size() == VOCAB
    for text in (real_text(5_000), "  two  spaces\n\ttab", "héllo ñ 漢字 🌹\x00", "", " "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_end_of_text_is_one_special_token(trained: Run) -> None:
    tokenizer = trained.tokenizer()
    end = tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer.encode("a<|endoftext|>").ids[-1] == end
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>").ids) == "a"


def test_the_loss_falls(trained: Run) -> None:
    losses = trained.losses()
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5
    perplexity = re.search(r"held-out .* perplexity ([\d.]+)", trained.log)
    assert perplexity is not None
    assert 1 < float(perplexity[1]) < VOCAB / 2


def test_the_sample_starts_with_the_prompt(trained: Run) -> None:
    assert "\nThe statement is" in trained.log


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    def weights(name: str, seed: str) -> np.ndarray:
        run = run_example(tmp_path / name, "--steps", "3", "--seed", seed)
        values: np.ndarray = run.checkpoint()["model"]["blocks.0.mlp.fc1.weight"].numpy()
        return values

    first = weights("a", "1")
    assert np.array_equal(first, weights("b", "1"))
    assert not np.array_equal(first, weights("c", "2"))


def test_without_steps_the_clock_ends_the_training(tmp_path: Path) -> None:
    run = run_example(tmp_path / "out", "--minutes", "0.01")
    seconds = [float(s) for s in re.findall(r"^step +\d+ +([\d.]+) s", run.log, flags=re.MULTILINE)]
    assert run.checkpoint()["step"] >= 1
    assert seconds[-1] < 60


def test_a_text_too_short_to_train_on_is_one_clear_line(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    with pytest.raises(SystemExit, match="too short"):
        train_gpt2.main(["--text", str(text), "--out", str(tmp_path / "out"), *QUICK, "--steps", "1"])


def test_the_manuals_paragraphs_are_each_kept_once() -> None:
    """The topics repeat each other; what is held out must not have been learnt from."""
    documents = train_gpt2.read_documents([])
    paragraphs = [" ".join(p.split()) for document in documents for p in document.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 1_000
    train, held_out = train_gpt2.split_text(documents, held_out=0.1, seed=0)
    assert 0.09 < len(held_out) / (len(train) + len(held_out)) < 0.11


def test_a_position_sees_nothing_behind_it(trained: Run) -> None:
    model = trained.model()
    ids = torch.arange(20)[None] % VOCAB
    changed = ids.clone()
    changed[0, 12:] += 1
    with torch.no_grad():
        assert torch.equal(model(ids)[:, :12], model(changed)[:, :12])
        assert not torch.equal(model(ids)[:, 12:], model(changed)[:, 12:])


def _module_logits(run: Run, token_ids: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = run.model()(torch.tensor([token_ids]))[0].numpy()
    return logits


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_the_served_logits_are_the_modules(trained: Run, backend: str) -> None:
    token_ids = trained.tokenizer().encode(real_text(2_000)).ids[:CONTEXT]
    served = compile_model(backend, load_model(open_checkpoint(trained.out / "model.pt")))
    try:
        logits = teacher_forced_logits(served, token_ids, chunk_sizes=[7, 1, 20])
    finally:
        served.close()
    np.testing.assert_allclose(logits, _module_logits(trained, token_ids), atol=1e-4, rtol=0)


def test_the_engine_continues_a_prompt_as_the_module_does(trained: Run) -> None:
    """The seed's own flow: train, then hand both files to InferenceEngine."""
    tokenizer, prompt = trained.tokenizer(), "An exception is"
    end = tokenizer.token_to_id("<|endoftext|>")
    expected = tokenizer.decode(trained.model().generate(tokenizer.encode(prompt).ids, 24, end))
    engine = InferenceEngine(
        checkpoint_path=str(trained.out / "model.pt"),
        tokenizer_name=str(trained.out / "tokenizer.json"),
        device="cpu",
        use_amp=False,
    )
    with engine:
        assert engine.generate(prompt=prompt, max_new_tokens=24) == expected
