"""`roseinfer chat`: a conversation with a model, in a terminal or line by line through a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roseinfer.core.config import Config
from roseinfer.core.errors import ConfigError, ContextLengthError, RoseinferError
from roseinfer.core.metrics import RequestRecord
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.inference_engine import InferenceEngine
from roseinfer.text.output_text import TextOptions

Message = dict[str, str]

PROMPT = "> "
PASTE_SECONDS = 0.02  # lines that follow each other this closely were not typed
# A model may write whatever it likes, but not move the cursor or set the window's title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How answers are made. `max_tokens` None: as many as fit; `seed` None: a new one each time."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int | None = None
    seed: int | None = None
    system: str | None = None

    def sampling_params(self, max_model_len: int) -> SamplingParams:
        """Raises InvalidRequestError naming the field."""
        max_tokens = max_model_len if self.max_tokens is None else self.max_tokens
        return SamplingParams(max_tokens=max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed)


class Conversation:
    """What was said so far, and the model that answers. Raises ConfigError for a model that does not converse."""

    def __init__(self, engine: InferenceEngine, options: ChatOptions) -> None:
        if engine.tokenizer.chat_template is None:
            raise ConfigError(
                f"{engine.name} has no chat template: it continues texts and does not converse; "
                "use `roseinfer generate`"
            )
        self.system = options.system
        self.messages: list[Message] = []
        self.records: list[RequestRecord] = []  # one for each answer
        self.max_model_len = engine.client.max_model_len
        self._engine = engine
        self._template = engine.tokenizer.chat_template
        self._params = options.sampling_params(self.max_model_len)

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages.clear()

    def transcript(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages]

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer in pieces. One that is broken off is kept as far as it came, a question without any is not.

        Raises ContextLengthError where the conversation has become too long, EngineError.
        """
        question = {"role": "user", "content": text}
        rendered = self._template.render([*self.transcript(), question], add_generation_prompt=True)
        ids = self._engine.tokenizer.encode_segments(rendered.segments, add_bos=False)  # the template writes its own
        generations = self._engine.prepare_ids([ids], self._params, TextOptions(), cut=True)
        pieces: list[str] = []
        try:
            with contextlib.closing(self._engine.run(generations)) as deltas:
                for _, delta in deltas:
                    pieces.append(delta.text)
                    yield delta.text
        finally:
            if answer := "".join(pieces):
                self.records.append(generations[0].record)
                self.messages += [question, {"role": "assistant", "content": answer}]


class Screen(Protocol):
    """Where questions come from and answers go to."""

    is_interactive: bool

    def read(self) -> str | None:
        """The next message; None at the end."""

    def write(self, piece: str) -> None:
        """A piece of an answer, as it is."""

    def say(self, text: str) -> None:
        """A line that is no part of any answer."""


class Pipe:
    """Lines in, answers out and nothing else; remarks go to standard error."""

    is_interactive = False

    def read(self) -> str | None:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def write(self, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Terminal:
    """Lines with a history; several that are pasted at once are one message."""

    is_interactive = True

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        with contextlib.suppress(ImportError):
            _set_up_readline()

    def read(self) -> str | None:
        try:
            lines = [input(PROMPT)]
            while select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
                lines.append(input())
        except EOFError:
            self.write("\n")
            return None
        except KeyboardInterrupt:
            self.say("\n(Ctrl-D or /quit leaves)")
            return ""
        return "\n".join(lines)

    def write(self, piece: str) -> None:
        sys.stdout.write(_CONTROL.sub("", piece))
        sys.stdout.flush()

    def say(self, text: str) -> None:
        self._console.print(_CONTROL.sub("", text), style="dim", markup=False)


def _set_up_readline() -> None:
    """Importing it is what gives `input` its keys and its history."""
    import readline

    if "libedit" not in (readline.__doc__ or ""):  # macOS: another syntax, and no such setting
        readline.parse_and_bind("set enable-bracketed-paste on")


class Chat:
    """Questions and commands from a screen, answers to it."""

    def __init__(self, conversation: Conversation, screen: Screen) -> None:
        self._conversation = conversation
        self._screen = screen
        self._is_over = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/reset": (self._reset, "forget what was said"),
            "/system": (self._system, "TEXT: what the model is to be; without TEXT, nothing"),
            "/stats": (self._stats, "tokens and times"),
            "/save": (self._save, "FILE: write the conversation as JSON"),
            "/help": (self._help, "this list"),
            "/quit": (self._quit, "leave, as Ctrl-D does"),
        }

    def run(self) -> None:
        """Until the end of the input or `/quit`. A question that fails is the end only where nobody can ask another."""
        while not self._is_over and (text := self._screen.read()) is not None:
            try:
                self._take(text)
            except RoseinferError as error:
                if not self._screen.is_interactive:
                    raise
                hint = "; /reset begins anew" if isinstance(error, ContextLengthError) else ""
                self._screen.say(f"error: {error}{hint}")

    def _take(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        if name in self._commands:
            self._commands[name][0](argument.strip())
        elif re.fullmatch(r"/[a-z]+", name):
            self._screen.say(f"there is no command {name}; /help shows what there is")
        elif text.strip():
            self._answer(text)

    def _answer(self, text: str) -> None:
        try:
            with contextlib.closing(self._conversation.ask(text)) as pieces:
                for piece in pieces:
                    self._screen.write(piece)
            self._screen.write("\n")
        except KeyboardInterrupt:
            if not self._screen.is_interactive:
                raise
            self._screen.say("\n(stopped)")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._screen.say("forgotten")

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        self._screen.say("from the next answer on" if text else "there is no system message any more")

    def _stats(self, _: str) -> None:
        records = self._conversation.records
        if not records:
            self._screen.say("nothing was answered yet")
            return
        num_tokens = sum(record.num_output_tokens for record in records)
        self._screen.say(f"last answer: {describe(records[-1], self._conversation.max_model_len)}")
        self._screen.say(f"in all: {_count(len(records), 'answer')}, {_count(num_tokens, 'token')}")

    def _save(self, file: str) -> None:
        messages = json.dumps(self._conversation.transcript(), ensure_ascii=False, indent=2)
        try:
            Path(file).expanduser().write_text(messages + "\n", encoding="utf-8")
            self._screen.say(f"written to {file}")
        except OSError as error:
            self._screen.say(f"{file or 'no file'} cannot be written: {error.strerror}")

    def _help(self, _: str) -> None:
        for name, (_command, help) in self._commands.items():
            self._screen.say(f"  {name:8} {help}")

    def _quit(self, _: str) -> None:
        self._is_over = True


def describe(record: RequestRecord, max_model_len: int) -> str:
    """One answer in numbers."""
    parts = [_count(record.num_output_tokens, "token")]
    if record.tokens_per_second is not None:
        parts.append(f"{record.tokens_per_second:.1f} tokens/s")
    if record.first_token_seconds is not None:
        parts.append(f"the first after {record.first_token_seconds:.2f} s")
    num_context = record.num_prompt_tokens + record.num_output_tokens
    cached = f"prompt {_count(record.num_prompt_tokens, 'token')} ({record.num_cached_tokens} cached)"
    return f"{', '.join(parts)}; {cached}; context {num_context} of {max_model_len}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def run_chat(config: Config, options: ChatOptions, say: Callable[[str], None]) -> None:
    """Loads the model and converses until the input ends. Raises RoseinferError where it cannot."""
    options.sampling_params(max_model_len=1)  # a wrong option is told before the model is loaded
    with InferenceEngine.from_config(config, say) as engine:
        conversation = Conversation(engine, options)
        screen: Screen = Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else Pipe()
        if screen.is_interactive:
            screen.say(f"{engine.name}; /help shows the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        try:
            Chat(conversation, screen).run()
        except BrokenPipeError:  # whoever read the answers has seen enough; nothing may be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
