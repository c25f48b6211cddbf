"""`python -m roseinfer.server`: the command line of roseinfer's first version, kept as it was.

`roseinfer serve` has more flags; what these do not say comes from the environment and `roseinfer.toml` here too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from roseinfer.core.config import Config, load_config
from roseinfer.core.errors import exit_code_of
from roseinfer.server.runner import serve
from roseinfer.server.startup import limit_libraries

if TYPE_CHECKING:
    from roseinfer.inference_engine import GenerateParams


_DEVICE_HELP = "where the model runs (default: auto, the GPU if there is one and roseinfer[cuda] is installed)"


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    limit_libraries()
    return exit_code_of(lambda: serve(_config(args), generate_defaults(args)))


def _config(args: argparse.Namespace) -> Config:
    from roseinfer.inference_engine import dtype_of

    return load_config(
        {
            "model": args.checkpoint_path,
            "tokenizer": args.tokenizer_name,
            "device": args.device,
            "dtype": dtype_of(use_amp=not args.no_amp, bf16=args.bf16),
            "host": args.host,
            "port": args.port,
        },
        defaults={"host": "0.0.0.0"},
    )


def generate_defaults(args: argparse.Namespace) -> GenerateParams:
    """For `/generate` bodies that leave a field out. Without `--stop-on-eos` generation stops at EOS as well.

    Raises InvalidRequestError: a wrong default is told now, not to every caller.
    """
    from roseinfer.inference_engine import GenerateParams

    defaults = GenerateParams(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, do_sample=args.do_sample, stop_on_eos=True
    )
    defaults.check()
    return defaults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m roseinfer.server", description="Serve a model over HTTP.")
    parser.add_argument("--checkpoint-path", required=True, help="a model file, folder, catalogue name or hub id")
    parser.add_argument(
        "--tokenizer-name", help="a tokenizer.json, folder, .gguf file or hub id (default: the model's)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help=_DEVICE_HELP)
    parser.add_argument("--no-amp", action="store_true", help="compute in float32")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--host", help="address to listen on (default: 0.0.0.0)")
    parser.add_argument("--port", help="port to listen on (default: 8000)")
    body = parser.add_argument_group("defaults for /generate bodies that leave the field out")
    body.add_argument("--stop-on-eos", action="store_true", help="stop at the end-of-text token (always the default)")
    body.add_argument("--do-sample", action="store_true", help="sample instead of taking the likeliest token")
    body.add_argument("--temperature", type=float, default=1.0)
    body.add_argument("--top-k", type=int, default=0, help="0 = off")
    body.add_argument("--top-p", type=float, default=1.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
