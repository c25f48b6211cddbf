"""The documentation names files, functions and settings; here it is held to what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roseinfer.core.config import KNOBS, Knob

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
PLANNED = {"engine/process.py"}  # architecture.md says so of it
REFERENCE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|cpp|h|inl|sh))(?::([\w.]+))?`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def references(page: str) -> list[tuple[str, str]]:
    return [(file, name) for file, name in REFERENCE.findall((ROOT / page).read_text("utf-8")) if file not in PLANNED]


def find(file: str) -> Path:
    return next(path for path in (ROOT / file, ROOT / "roseinfer" / file) if path.is_file())


@pytest.mark.parametrize("page", PAGES)
def test_files_and_functions_that_are_named_exist(page: str) -> None:
    for file, name in references(page):
        source = find(file).read_text("utf-8")
        for part in filter(None, name.split(".")):
            assert re.search(rf"\b{part}\b", source), f"{page} names {file}:{name}"


def test_one_request_is_traced_by_names() -> None:
    assert len([name for _, name in references("docs/architecture.md") if name]) > 8


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall((ROOT / page).read_text("utf-8")):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def row_of(knob: Knob) -> str:
    kind = knob.kind.metavar.replace("|", ", ") or "switch"
    text, _, default = knob.help.partition(" [default: ")
    default = default.rstrip("]") or ("" if knob.default is None else str(knob.default).lower())
    flag = f"`{knob.flag}`, `--no-{knob.flag[2:]}`" if knob.kind.is_switch else f"`{knob.flag}`"
    return f"| {'`MODEL`' if knob.name == 'model' else flag} | {kind} | {default} | {text} |"


def test_every_setting_is_in_the_table() -> None:
    """A row that is missing can be copied from the message."""
    table = (ROOT / "docs" / "api.md").read_text("utf-8").splitlines()
    assert [row for row in map(row_of, KNOBS.values()) if row not in table] == []
