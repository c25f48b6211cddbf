"""Reasoning split from content, however the text is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.reasoning import ReasoningSplitter, ReasoningTags, find_reasoning_tags
from tests.text.tool_dialects.answers import Answer, cuts, parse

TEMPLATES = Path(__file__).parent / "chat_templates"
THINK = ReasoningTags("<think>", "</think>")
MISTRAL = ReasoningTags("[THINK]", "[/THINK]")


def split(text: str, *, is_open: bool = False, tags: ReasoningTags = THINK) -> tuple[str, str]:
    answer = parse(ReasoningSplitter(tags, is_open=is_open), [text])
    return answer.reasoning, answer.content


@pytest.mark.parametrize(
    ("template", "tags"),
    [("qwen3", THINK), ("deepseek_r1", THINK), ("qwen2_5", None), ("llama3_1", None), ("mistral_v7", None)],
)
def test_tags_of_templates(template: str, tags: ReasoningTags | None) -> None:
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    assert find_reasoning_tags(source) == tags


@pytest.mark.parametrize(
    ("source", "tags"),
    [
        ("[THINK]x[/THINK]", MISTRAL),
        ("{{ '<seed:think>' }}</seed:think>", ReasoningTags("<seed:think>", "</seed:think>")),
        ("<reasoning></reasoning>", ReasoningTags("<reasoning>", "</reasoning>")),
        ("what do you think?", None),
    ],
)
def test_other_tags(source: str, tags: ReasoningTags | None) -> None:
    assert find_reasoning_tags(source) == tags


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<｜Assistant｜><think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_prompts_that_open_the_reasoning(prompt: str, is_open: bool) -> None:
    assert THINK.is_opened_by(prompt) is is_open


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("\n<think>Hm.\n\nWell.</think>Yes.\n", "Hm.\n\nWell.", "Yes.\n"),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("<think>Hm.", "Hm.", ""),
        ("<think>Hm.\n</thin", "Hm.\n</thin", ""),
        ("<think>Hm.\n", "Hm.\n", ""),
        ("Yes. <think>Hm.</think>", "", "Yes. <think>Hm.</think>"),
        ("\n Yes.", "", "\n Yes."),
        ("<thin", "", "<thin"),
        ("", "", ""),
    ],
)
def test_answers(text: str, reasoning: str, content: str) -> None:
    assert split(text) == (reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("\n\n  Hm.</think>Yes.</think>", "  Hm.", "Yes.</think>"),
        ("<think>\nHm.</think>Yes.", "Hm.", "Yes."),
        ("</think>Yes.", "", "Yes."),
        ("Hm.", "Hm.", ""),
    ],
)
def test_answers_that_begin_inside(text: str, reasoning: str, content: str) -> None:
    assert split(text, is_open=True) == (reasoning, content)


def test_tags_in_brackets() -> None:
    assert split("[THINK]Hm.[/THINK]Yes.", tags=MISTRAL) == ("Hm.", "Yes.")


def test_reasoning_streams() -> None:
    splitter = ReasoningSplitter(THINK, is_open=False)
    seen = []
    for piece in ("<think>\nHm", ".\n", "And", " </th", "ink", ">\n", "\nYes"):
        answer = Answer()
        answer.add(splitter.push(piece))
        seen.append((answer.reasoning, answer.content))
    assert seen == [("Hm", ""), (".", ""), ("\nAnd", ""), (" ", ""), ("", ""), ("", ""), ("", "Yes")]


fragments = st.sampled_from(["<think>", "</think>", "<", "<th", "</", ">", "\n", " ", "Hm", "é", "😀", "think>"])


@given(cut=cuts(st.lists(fragments, max_size=16).map("".join)), is_open=st.booleans())
def test_nothing_is_lost(cut: tuple[str, list[str]], is_open: bool) -> None:
    """But one pair of tags, and line breaks and white space beside it."""
    text, pieces = cut
    answer = parse(ReasoningSplitter(THINK, is_open=is_open), pieces)
    assert answer == parse(ReasoningSplitter(THINK, is_open=is_open), [text])
    begins = text.lstrip().startswith("<think>")
    if not begins and not is_open:
        assert answer == Answer(content=text)
        return
    reasoning, _, content = (text.lstrip().removeprefix("<think>") if begins else text).partition("</think>")
    assert answer.reasoning.strip("\n") == reasoning.strip("\n")
    assert answer.content == content.lstrip("\n")
