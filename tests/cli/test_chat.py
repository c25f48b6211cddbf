"""`roseinfer chat`: the conversation, its commands, a pipe and a terminal."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roseinfer.chat import Chat, ChatOptions, Conversation, Terminal, describe
from roseinfer.core.errors import ConfigError, ContextLengthError, InvalidRequestError
from roseinfer.core.metrics import RequestRecord
from roseinfer.inference_engine import InferenceEngine
from tests.cli.processes import Run
from tests.fake_model import RecitingProgram, fake_engine, recite

ROOT = Path(__file__).parents[2]


class ScriptedScreen:
    """Reads from a list and keeps what it is told."""

    def __init__(self, *messages: str, is_interactive: bool = True) -> None:
        self.is_interactive = is_interactive
        self.on_write: Callable[[], None] = lambda: None
        self.written = ""
        self.said: list[str] = []
        self._messages = list(messages)

    def read(self) -> str | None:
        return self._messages.pop(0) if self._messages else None

    def write(self, piece: str) -> None:
        self.written += piece
        self.on_write()

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    """The model of bytes, with a chat template of one line per message."""
    program = RecitingProgram()
    program.step_seconds = 0.001
    with fake_engine(program) as engine:
        engine.tokenizer = with_template(engine.tokenizer)
        yield engine


def with_template(tokenizer: Any) -> Any:
    def render(messages: list[dict[str, str]], *, add_generation_prompt: bool) -> SimpleNamespace:
        assert add_generation_prompt
        return SimpleNamespace(segments=[(rendered(messages), True)])

    tokenizer.chat_template = SimpleNamespace(render=render)
    tokenizer.encode_segments = lambda segments, add_bos: [i for text, _ in segments for i in tokenizer.encode(text)]
    return tokenizer


def rendered(messages: list[dict[str, str]]) -> str:
    return "".join(f"{message['role']}:{message['content']}\n" for message in messages) + "assistant:"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def converse(engine: InferenceEngine, *messages: str, **options: Any) -> tuple[ScriptedScreen, Conversation]:
    screen = ScriptedScreen(*messages)
    conversation = Conversation(engine, ChatOptions(temperature=0.0, **options))
    Chat(conversation, screen).run()
    return screen, conversation


def test_each_answer_follows_from_all_that_was_said(engine: InferenceEngine) -> None:
    screen, conversation = converse(engine, "Hi", "", "And\nthen?", max_tokens=12)
    first = recite(rendered([user("Hi")]), 12)
    said = [user("Hi"), assistant(first), user("And\nthen?")]
    second = recite(rendered(said), 12)
    assert screen.written == f"{first}\n{second}\n"
    assert conversation.messages == [*said, assistant(second)]
    assert screen.said == []


def test_the_system_message_comes_first(engine: InferenceEngine) -> None:
    system = {"role": "system", "content": "Be brief"}
    screen, conversation = converse(engine, "Hi", system="Be brief", max_tokens=8)
    assert screen.written == recite(rendered([system, user("Hi")]), 8) + "\n"
    assert conversation.transcript()[0] == system
    screen, conversation = converse(engine, "/system Be brief", "Hi", max_tokens=8)
    assert screen.written == recite(rendered([system, user("Hi")]), 8) + "\n"
    screen, conversation = converse(engine, "/system", "Hi", system="Be brief", max_tokens=8)
    assert screen.written == recite(rendered([user("Hi")]), 8) + "\n"


def test_reset_forgets(engine: InferenceEngine) -> None:
    screen, conversation = converse(engine, "Hi", "/reset", "Hi", max_tokens=8)
    once = recite(rendered([user("Hi")]), 8)
    assert screen.written == f"{once}\n{once}\n"
    assert conversation.messages == [user("Hi"), assistant(once)]


def test_stats(engine: InferenceEngine) -> None:
    screen, _ = converse(engine, "/stats", "Hi", "/stats", max_tokens=8)
    assert screen.said[0] == "nothing was answered yet"
    num_prompt = len(rendered([user("Hi")]))
    shown = re.fullmatch(
        r"last answer: 8 tokens, ([\d.]+) tokens/s, the first after [\d.]+ s; "
        rf"prompt {num_prompt} tokens \(0 cached\); context {num_prompt + 8} of 512",
        screen.said[1],
    )
    assert shown
    assert 1 < float(shown[1]) <= 1000  # a step takes a millisecond
    assert screen.said[2] == "in all: 1 answer, 8 tokens"


def test_an_answer_without_a_token_in_numbers() -> None:
    assert describe(RequestRecord(1, 8), 64) == "0 tokens; prompt 1 token (0 cached); context 1 of 64"


def test_save(engine: InferenceEngine, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    screen, conversation = converse(engine, "Hí", f"/save {file}", "/save", f"/save {tmp_path}/no/x", max_tokens=20)
    assert json.loads(file.read_text(encoding="utf-8")) == conversation.messages
    assert screen.said[0] == f"written to {file}"
    assert "cannot be written" in screen.said[1]
    assert "No such file" in screen.said[2]


def test_help_names_every_command(engine: InferenceEngine) -> None:
    screen, _ = converse(engine, "/help")
    shown = {line.split()[0] for line in screen.said}
    assert shown == {"/reset", "/system", "/stats", "/save", "/help", "/quit"}


def test_quit_leaves(engine: InferenceEngine) -> None:
    screen, conversation = converse(engine, "/quit", "Hi")
    assert (screen.written, conversation.messages) == ("", [])


def test_a_command_that_is_not_there_is_not_asked(engine: InferenceEngine) -> None:
    screen, conversation = converse(engine, "/rest", "/etc/passwd?", max_tokens=4)
    assert screen.said == ["there is no command /rest; /help shows what there is"]
    assert [message["content"] for message in conversation.messages[:1]] == ["/etc/passwd?"]


def test_an_interrupt_stops_the_answer_and_keeps_what_there_is(engine: InferenceEngine) -> None:
    screen = ScriptedScreen("Hi", "/stats")
    conversation = Conversation(engine, ChatOptions(temperature=0.0))

    def interrupt() -> None:
        if len(screen.written) == 5:
            raise KeyboardInterrupt

    screen.on_write = interrupt
    Chat(conversation, screen).run()
    assert screen.said[0] == "\n(stopped)"
    assert conversation.messages == [user("Hi"), assistant(screen.written)]
    assert conversation.records[0].finish_reason == "abort"
    deadline = time.monotonic() + 30
    while engine.client.stats().num_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_question_that_does_not_fit_is_told_and_forgotten(engine: InferenceEngine) -> None:
    screen, conversation = converse(engine, "x" * 600, "Hi", max_tokens=4)
    assert screen.said[0].startswith("error: ")
    assert screen.said[0].endswith("; /reset begins anew")
    assert conversation.messages[0] == user("Hi")
    with pytest.raises(ContextLengthError):
        Chat(conversation, ScriptedScreen("x" * 600, is_interactive=False)).run()


def test_an_answer_ends_where_the_context_ends(engine: InferenceEngine) -> None:
    question = "x" * (512 - 4 - len(rendered([user("")])))
    _, conversation = converse(engine, question)
    record = conversation.records[0]
    assert (record.num_output_tokens, record.finish_reason) == (4, "length")


def test_the_seed_makes_an_answer_come_again(engine: InferenceEngine) -> None:
    def answer(seed: int) -> str:
        conversation = Conversation(engine, ChatOptions(temperature=1.0, top_p=1.0, max_tokens=24, seed=seed))
        return "".join(conversation.ask("Hi"))

    assert answer(1) == answer(1) != answer(2)


def test_a_base_model_is_refused(engine: InferenceEngine) -> None:
    engine.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"no chat template.*roseinfer generate"):
        Conversation(engine, ChatOptions())


@pytest.mark.parametrize("wrong", [{"temperature": 9.0}, {"top_p": 0.0}, {"max_tokens": -1}, {"seed": -1}])
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        ChatOptions(**wrong).sampling_params(64)


def test_a_model_cannot_write_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.write("a\x1b[2J\x07\x9b1mb\tc\n\r\x00é😀")
    terminal.say("[bold]\x1b]0;title\x07")
    assert capsys.readouterr().out == "a[2J1mb\tc\né😀[bold]]0;title\n"


# -- the command --------------------------------------------------------------------------------------------

FAKE_MAIN = """
import sys
from roseinfer.inference_engine import InferenceEngine
from tests.cli import fake_main
from tests.cli.test_chat import with_template

plain = InferenceEngine.from_config

def from_config(config, say=None):
    engine = plain(config, say)
    engine.tokenizer.chat_template = None
    if config.model != "base":
        with_template(engine.tokenizer)
    return engine

InferenceEngine.from_config = from_config
from roseinfer.cli import main
main()
"""


def start(environment: dict[str, str], *arguments: str, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FAKE_MAIN, "chat", "--temperature", "0", "--max-tokens", "8", *arguments]
    return subprocess.Popen(command, env=environment, text=True, encoding="utf-8", **streams)


def run_piped(environment: dict[str, str], stdin: str, *arguments: str) -> tuple[str, str, int]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(environment, *arguments, **pipes) as process:
        out, err = process.communicate(stdin, timeout=60)
        return out, err, process.returncode


def test_through_a_pipe_there_are_answers_only(environment: dict[str, str]) -> None:
    first = recite(rendered([user("Hi")]), 8)
    second = recite(rendered([user("Hi"), assistant(first), user("So?")]), 8)
    out, err, code = run_piped(environment, "Hi\n/stats\nSo?")
    assert (out, code) == (f"{first}\n{second}\n", 0)
    assert err.startswith("last answer: 8 tokens")


def test_a_base_model_names_the_other_command(environment: dict[str, str]) -> None:
    out, err, code = run_piped(environment, "Hi\n", "base")
    assert (out, code) == ("", 2)
    assert err.startswith("error: ")
    assert "roseinfer generate" in err
    assert err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(environment: dict[str, str]) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write("Hi\n" * 3)
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_help_fits(run: Run) -> None:
    done = run("chat", "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for flag in ("--system", "--temperature", "--top-p", "--max-tokens", "--seed", "MODEL"):
        assert flag in done.stdout


class PseudoTerminal:
    """The command with a terminal around it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._file, other = pty.openpty()
        streams = {"stdin": other, "stdout": other, "stderr": other, "start_new_session": True}
        self.process = start({**environment, "TERM": "xterm", "STEP_SECONDS": "0.2"}, "--max-tokens", "300", **streams)
        os.close(other)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def wait_for(self, pattern: str) -> None:
        """What is shown from here on has this in it."""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._file], [], [], 0.1)[0]:
                self.shown += self._decoder.decode(os.read(self._file, 4096))
        self.shown = self.shown[found.end() :]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._file)


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[PseudoTerminal]:
    terminal = PseudoTerminal(environment)
    try:
        yield terminal
    finally:
        terminal.close()


def test_in_a_terminal(terminal: PseudoTerminal) -> None:
    terminal.wait_for("/help shows the commands")
    terminal.wait_for("> ")
    terminal.type("\x1b[200~one\ntwo\x1b[201~\n")  # a bracketed paste
    answer = recite(rendered([user("one\ntwo")]), 6)
    terminal.wait_for(re.escape(answer))
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for(r"\(stopped\)")
    terminal.wait_for("> ")
    terminal.type("/stats\n")
    terminal.wait_for(r"last answer: (.|\s)*cached\)")
    terminal.wait_for("> ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("Ctrl-D or /quit leaves")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
