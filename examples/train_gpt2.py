"""Trains a small GPT-2-like model on the CPU in about two minutes, from nothing, and writes what roseinfer serves.

    python examples/train_gpt2.py                       # the Python reference manual that CPython carries inside
    python examples/train_gpt2.py --text book.txt more.txt --minutes 10

Two cores reach a perplexity of about 75 on held-out text, where a blind guess has 2048: English words and half
sentences. `--out` (examples/out) then holds `model.pt` and `tokenizer.json`. To serve and ask them:

    python -m roseinfer.server --checkpoint-path examples/out/model.pt \\
        --tokenizer-name examples/out/tokenizer.json --device cpu
    curl http://127.0.0.1:8000/generate -H 'Content-Type: application/json' \\
        -d '{"prompt": "The statement is", "max_new_tokens": 64}'

Needs `torch` and `tokenizers` and nothing of roseinfer: the checkpoint is the whole contract between the two.
"""

import argparse
import math
import os
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where others use the cores too, spinning is ten times slower

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

END_OF_TEXT = "<|endoftext|>"
WRAPPED_LINE = re.compile(r"(?<=\S)\n(?=[\w\"“(])")  # prose; code and lists are indented, underlines are no words


@dataclass
class ModelConfig:
    """Saved as the checkpoint's `config`; the names are the format's."""

    vocab_size: int
    max_position_embeddings: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    dropout: float = 0.0  # two minutes see the text a few times: too few to overfit
    use_tensor_parallel: bool = False
    use_activation_checkpoint: bool = False


# -- the model: B sequences, T positions, C = d_model, H heads of D features, V tokens ------------------------------


class Attention(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.n_heads = c.n_heads
        self.qkv_proj = nn.Linear(c.d_model, 3 * c.d_model)  # rows: all of q, all of k, all of v
        self.out_proj = nn.Linear(c.d_model, c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        heads = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv_proj(x).chunk(3, dim=-1))
        q, k, v = heads  # (B, H, T, D) each
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(a.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.d_model, c.d_ff)
        self.fc2 = nn.Linear(c.d_ff, c.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # the exact GELU, by erf


class Block(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(c.d_model)
        self.attn = Attention(c)
        self.ln2 = nn.LayerNorm(c.d_model)
        self.mlp = MLP(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.config = c
        self.token_embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.position_embedding = nn.Embedding(c.max_position_embeddings, c.d_model)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.ln_f = nn.LayerNorm(c.d_model)
        self.lm_head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's: N(0, 0.02), smaller where a block writes to the residual stream."""
        for name, p in self.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layers))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) → logits (B, T, V)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))

    @torch.no_grad()
    def generate(self, ids: list[int], max_new_tokens: int, eos_id: int) -> list[int]:
        """Greedy, the simple way: the whole sequence is computed again for every token."""
        for _ in range(max_new_tokens):
            window = torch.tensor([ids[-self.config.max_position_embeddings :]])
            ids = [*ids, int(self(window)[0, -1].argmax())]
            if ids[-1] == eos_id:
                break
        return ids


# -- the data ---------------------------------------------------------------------------------------------------------


def read_documents(paths: list[Path]) -> list[str]:
    """The files' texts, or the topics of Python's reference manual: they repeat each other, so each paragraph once."""
    if paths:
        return [path.read_text(encoding="utf-8") for path in paths]
    from pydoc_data.topics import topics

    seen = {""}
    documents = []
    for _, topic in sorted(topics.items()):
        fresh = []
        for paragraph in WRAPPED_LINE.sub(" ", topic).split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                fresh.append(paragraph)
            seen.add(words)
        documents.append("\n\n".join(fresh))
    return documents


def split_text(documents: list[str], held_out: float, seed: int) -> tuple[str, str]:
    """Shuffled documents, each closed by END_OF_TEXT, cut into training text and a held-out tail."""
    shuffled = random.Random(seed).sample(documents, len(documents))
    text = "".join(document + END_OF_TEXT for document in shuffled)
    cut = int(len(text) * (1 - held_out))
    return text[:cut], text[cut:]


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Byte-level BPE: every string has an encoding, and decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split(END_OF_TEXT), trainer)
    return tokenizer


def random_batch(ids: Tensor, batch_size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and, one token on, their targets, both (B, T), from random places of ids (N,)."""
    starts = torch.randint(len(ids) - length, (batch_size,), generator=generator)
    windows = ids[starts[:, None] + torch.arange(length + 1)]
    return windows[:, :-1], windows[:, 1:]


# -- training ---------------------------------------------------------------------------------------------------------


def mean_loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats per token."""
    return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def validation_loss(model: GPT, ids: Tensor, length: int) -> float:
    """The mean over all of ids (N,), cut into windows of `length`."""
    count = (len(ids) - 1) // length
    inputs, targets = ids[: count * length].view(count, length), ids[1 : count * length + 1].view(count, length)
    return sum(mean_loss(model, inputs[i : i + 1], targets[i : i + 1]).item() for i in range(count)) / count


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 5 %, then half a cosine down to a twentieth of the peak."""
    warmup = min(1.0, progress / 0.05 + 0.01)
    return peak * warmup * (0.525 + 0.475 * math.cos(math.pi * min(1.0, progress)))


def make_optimizer(model: GPT, lr: float) -> torch.optim.AdamW:
    """Matrices decay; biases and norms do not."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def has_fast_bf16() -> bool:
    """Where the CPU multiplies bf16 in hardware it halves the time of a step; elsewhere it costs time."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def train(model: GPT, train_ids: Tensor, args: argparse.Namespace) -> tuple[torch.optim.AdamW, int]:
    """For `--steps` steps or `--minutes` minutes, by which the schedule runs; the optimizer and the steps done."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = make_optimizer(model, args.lr)
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.lr)
        inputs, targets = random_batch(train_ids, args.batch_size, args.context, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = mean_loss(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seconds = step + 1, time.monotonic() - started
        progress = step / args.steps if args.steps else seconds / (60 * args.minutes)
        if step % args.log_every == 0 or progress >= 1.0:
            rate = step * inputs.numel() / seconds
            print(f"step {step:5d}  {seconds:5.0f} s  loss {loss.item():.3f}  {rate:6.0f} tokens/s", flush=True)
    return optimizer, step


def save(out: Path, model: GPT, tokenizer: Tokenizer, optimizer: torch.optim.AdamW, step: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    checkpoint = {"model": model.state_dict(), "config": asdict(model.config)}
    checkpoint |= {"optimizer": optimizer.state_dict(), "step": step}
    torch.save(checkpoint, out / "model.pt")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="UTF-8 files to learn from")
    parser.add_argument("--out", type=Path, default=Path("examples/out"))
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to train")
    parser.add_argument("--steps", type=int, help="train by steps instead: then one seed gives one model")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=has_fast_bf16())
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", default="The statement is")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    train_text, held_out_text = split_text(read_documents(args.text), held_out=0.08, seed=args.seed)
    tokenizer = train_tokenizer(train_text, args.vocab_size)
    train_ids, held_out_ids = (torch.tensor(tokenizer.encode(text).ids) for text in (train_text, held_out_text))
    if min(len(train_ids), len(held_out_ids)) <= args.context + 1:
        raise SystemExit(f"the text is too short: {len(train_ids)} + {len(held_out_ids)} tokens")
    model = GPT(
        ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=args.context,
            n_layers=args.layers,
            n_heads=args.heads,
            d_model=args.width,
            d_ff=4 * args.width,
        )
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters / 1e6:.1f} M parameters, {len(train_ids)} tokens to train on, {len(held_out_ids)} held out")
    optimizer, step = train(model, train_ids, args)
    save(args.out, model, tokenizer, optimizer, step)
    loss = validation_loss(model, held_out_ids, args.context)
    print(f"held-out loss {loss:.3f}, perplexity {math.exp(loss):.1f} (a blind guess has {tokenizer.get_vocab_size()})")
    ids = model.generate(tokenizer.encode(args.prompt).ids, 64, tokenizer.token_to_id(END_OF_TEXT))
    print(tokenizer.decode(ids))


if __name__ == "__main__":
    main()
