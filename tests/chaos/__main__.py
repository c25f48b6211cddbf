"""`python -m tests.chaos [SCENARIO …]`: runs scenarios one after the other and prints their figures as a table."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from roseinfer.catalog import resolve_model
from roseinfer.core.config import load_config
from tests.chaos.result import Result, Scale, Settings

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    scale = Scale.SHORT if args.short else Scale.FULL
    names = [name for name in args.scenarios or scenario_names() if name not in args.skip]
    results: list[tuple[str, Result]] = []
    for name in names:
        module = importlib.import_module(f"tests.chaos.{name}")
        results.append(("roseinfer", _run(name, module, Settings(args.model), scale)))
        if args.peer_command and getattr(module, "HAS_PEER", False):
            results.append((args.peer_name, _run(name, module, _peer(args), scale)))
    results.sort(key=lambda item: _goal_number(item[1]))
    print(table(results))
    if args.json:
        Path(args.json).write_text(json.dumps(_as_json(results), indent=1, ensure_ascii=False) + "\n")
    return 0 if all(result.passed for server, result in results if server == "roseinfer") else 1


def scenario_names() -> list[str]:
    """Of the files that have something to run."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef run(settings" in path.read_text())


def table(results: Sequence[tuple[str, Result]]) -> str:
    """Markdown: a row for each server that went through a scenario."""
    rows = ["| # | scenario | server | met | figures |", "|---|---|---|---|---|"]
    for server, result in results:
        figures = "; ".join(f"{name}: {value}" for name, value in result.figures.items())
        rows.append(f"| {result.goal} | {result.title} | {server} | {'yes' if result.passed else 'no'} | {figures} |")
    return "\n".join(rows)


def _run(name: str, module: ModuleType, settings: Settings, scale: Scale) -> Result:
    """A scenario that cannot be run has failed, and the next one has its turn."""
    print(f"{name} ({'peer' if settings.is_peer else settings.model}, {scale.value})", file=sys.stderr, flush=True)
    try:
        result: Result = module.run(settings, scale)
    except Exception as error:
        traceback.print_exc()
        result = Result("R?", name, {}, passed=False, notes=[repr(error)])
    for note in result.notes:
        print(f"  {note}", file=sys.stderr, flush=True)
    return result


def _peer(args: argparse.Namespace) -> Settings:
    return Settings(str(resolve_model(args.model, load_config().models_dir)), args.peer_command)


def _goal_number(result: Result) -> int:
    digits = "".join(filter(str.isdecimal, result.goal))
    return int(digits) if digits else 0


def _as_json(results: Sequence[tuple[str, Result]]) -> list[dict[str, object]]:
    return [{"server": server, **dataclasses.asdict(result)} for server, result in results]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="What faults and load do to a server.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(scenario_names())}")
    parser.add_argument("--skip", action="append", default=[], metavar="SCENARIO", help="all but this one")
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes, and weaker figures")
    parser.add_argument("--model", default=Settings.model, help="what is served (default: %(default)s)")
    parser.add_argument("--peer-command", metavar="COMMAND", help="starts another server, of {model} on {port}")
    parser.add_argument("--peer-name", default="peer", help="what the table calls it (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
