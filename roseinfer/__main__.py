"""The `roseinfer` command. A plain `serve` is read here, all else by the command line in `cli.py`.

The library behind that one takes a tenth of the time in which a server starts.
"""

from __future__ import annotations

import sys
from argparse import ArgumentError, ArgumentParser, BooleanOptionalAction
from collections.abc import Mapping, Sequence
from typing import NoReturn

from roseinfer.core.config import knobs_of, load_config
from roseinfer.core.errors import exit_code_of


def main() -> NoReturn:
    flags = plain_serve_flags(sys.argv[1:])
    if flags is None:
        from roseinfer.cli import main

        main()
    from roseinfer.server.runner import serve

    sys.exit(exit_code_of(lambda: serve(load_config(flags))))


def plain_serve_flags(arguments: Sequence[str]) -> Mapping[str, object] | None:
    """The settings of `serve [MODEL] [--flag VALUE]...` by name; None for what is to be explained or refused."""
    if arguments[:1] != ["serve"]:
        return None
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("model", nargs="?")
    for knob in knobs_of("model", "engine", "server"):
        if knob.name != "model":
            parser.add_argument(knob.flag, action=BooleanOptionalAction if knob.kind.is_switch else "store")
    try:
        flags, unknown = parser.parse_known_args(arguments[1:])
    except ArgumentError:
        return None
    return None if unknown else vars(flags)


if __name__ == "__main__":
    main()
