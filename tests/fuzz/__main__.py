"""Damaged and hostile model files by the thousand: each is refused by a typed error or loads correctly, in time.

`python -m tests.fuzz` runs all formats, `python -m tests.fuzz gguf --only 17` one mutant in this process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from roseinfer.core.machine import usable_cores
from tests.fuzz import campaign
from tests.fuzz.campaign import Fault, Result
from tests.fuzz.judge import OUTCOMES
from tests.fuzz.mutant import find_format, format_names, rng_of

KINDS = {"crash": "crashes", "hang": "hangs", "side effect": "side effects", "error": "other errors"}


def main() -> int:
    arguments = _parse()
    if arguments.only is not None:
        return _run_one(arguments.formats[0], arguments.seed, arguments.only)
    results = []
    for name in arguments.formats or format_names():
        results.append(
            campaign.run(
                name,
                arguments.count,
                arguments.seed,
                num_children=arguments.children,
                faults=arguments.faults,
                start=arguments.start,
                max_memory=arguments.memory * 2**30 or None,
            )
        )
        _report(results[-1])
    print(table(results))
    return int(any(result.faults for result in results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", choices=[*format_names(), []], metavar="FORMAT", help=str(format_names()))
    parser.add_argument("--count", type=int, default=5000, help="mutants of each format")
    parser.add_argument("--start", type=int, default=0, help="the first one's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=usable_cores())
    parser.add_argument("--memory", type=int, default=campaign.MAX_MEMORY >> 30, help="GiB per child, 0 = no limit")
    parser.add_argument("--faults", type=Path, default=Path("build/fuzz"), help="where faulty mutants are kept")
    parser.add_argument("--only", type=int, help="receive this mutant alone, in this process")
    return parser.parse_args()


def _run_one(name: str, seed: int, index: int) -> int:
    module = find_format(name)
    mutant = module.make(module.make_bases(), rng_of(name, seed, index))
    with tempfile.TemporaryDirectory() as folder:
        path = mutant.write(Path(folder))
        print(module.receive(path, rng_of(f"receive {name}", seed, index)))
    return 0


def _report(result: Result) -> None:
    """Each fault once, with how many there are that end in the same line."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in result.faults:
        groups.setdefault((fault.kind, fault.reason.strip().splitlines()[-1][:200]), []).append(fault)
    for (kind, last), faults in groups.items():
        print(f"{len(faults)} × {kind}: {last} ({faults[0].folder})", file=sys.stderr)


def table(results: list[Result]) -> str:
    titles = ["format", "mutants", *OUTCOMES, *KINDS.values(), "seconds"]
    rows = [
        [
            result.format,
            result.count,
            *(result.outcomes[outcome] for outcome in OUTCOMES),
            *(result.num_faults(kind) for kind in KINDS),
            f"{result.seconds:.0f}",
        ]
        for result in results
    ]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
