"""A model's chat template: messages and tools → the prompt's text, and what of it may be special tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from roseinfer.core.errors import InvalidRequestError
from roseinfer.text.chat_messages import Message, has_tool_messages, plain_copy, prepare_messages
from roseinfer.text.control_names import ControlNames, Mask, RenderedPrompt, map_strings, private_use_in
from roseinfer.text.render_budget import BudgetError, RenderBudget

if TYPE_CHECKING:
    from jinja2 import Template

    from roseinfer.text.template_facts import TemplateFacts
    from roseinfer.text.template_sandbox import TemplateSandbox

__all__ = ["ChatTemplate", "RenderedPrompt"]

_MAX_REASON = 500
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True)
class _Compiled:
    template: Template
    facts: TemplateFacts
    searched_names: frozenset[str]  # of control tokens, which it looks for in messages


class ChatTemplate:
    """Thread safe. Jinja is imported, and a template compiled, with the first rendering.

    Args:
        source: the template; `tool_source` the one for tools, or for messages that tell of them, if the model has two.
        bos_token, eos_token, tokens: what templates know by these names, for example `tokens={"unk_token": "<unk>"}`.
        control_names: the names that encoding takes for special tokens. In what callers write they are text.
        max_chars, max_seconds: what one rendering may make and take; the time is that of its thread.
    """

    def __init__(
        self,
        source: str,
        *,
        tool_source: str | None = None,
        bos_token: str = "",
        eos_token: str = "",
        tokens: Mapping[str, str] | None = None,
        control_names: Iterable[str] = (),
        max_chars: int = 4 << 20,
        max_seconds: float = 2.0,
    ) -> None:
        self.source = source
        self.tool_source = source if tool_source is None else tool_source
        self._tokens = {**(tokens or {}), "bos_token": bos_token, "eos_token": eos_token}
        self._control_names = list(control_names)
        self._max_chars = max_chars
        self._max_seconds = max_seconds
        self._compiled: dict[str, _Compiled] = {}
        self._lock = threading.Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> RenderedPrompt:
        """Messages and tools as OpenAI's clients send them; `kwargs` are further variables for the template.

        So are `variables`, which come from a caller and may have any names: those of the arguments are refused.

        `continue_final_message`: the prompt ends with the last message's text, for the model to go on from there.
        Raises InvalidRequestError naming `messages` for all that the template refuses or cannot do.
        """
        further = {**kwargs, **(variables or {})}
        _check_arguments(messages, add_generation_prompt, continue_final_message, further)
        compiled = self._compile(self.tool_source if tools or has_tool_messages(messages) else self.source)
        facts = compiled.facts
        chat = prepare_messages(
            messages,
            as_parts=facts.needs_parts,
            keep_parts=facts.iterates_content,
            keep_null=facts.reads_tool_calls,
        )
        further = plain_copy(further, "chat_template_kwargs")
        given = {"tools": plain_copy(tools, "tools") or None, "documents": None, **further}
        mask = Mask(self._names, private_use_in([self.source, self.tool_source, chat, given]))
        chat = [_hide_message(message, compiled.searched_names, mask) for message in chat]
        end_mark = mask.new_char()
        if continue_final_message:
            _mark_end(chat[-1], end_mark)
        own = {"messages": chat, "add_generation_prompt": add_generation_prompt}
        rendered = self._run(compiled.template, {**self._tokens, **map_strings(mask.hide, given), **own}, mask)
        return mask.reveal(_cut_at(end_mark, rendered) if continue_final_message else rendered)

    @cached_property
    def _sandbox(self) -> TemplateSandbox:
        from roseinfer.text.template_sandbox import TemplateSandbox

        return TemplateSandbox()

    @cached_property
    def _names(self) -> ControlNames:
        return ControlNames(self._control_names)

    def _compile(self, source: str) -> _Compiled:
        with self._lock:
            if source not in self._compiled:
                self._compiled[source] = self._compile_new(source)
            return self._compiled[source]

    def _compile_new(self, source: str) -> _Compiled:
        try:
            from roseinfer.text.template_facts import find_facts

            budget = self._new_budget()
            with self._sandbox.use(budget):
                tree = self._sandbox.parse(source)
                facts = find_facts(tree)
                searched = frozenset(self._searched_names(facts, budget))
                return _Compiled(self._sandbox.compile_tree(tree), facts, searched)
        except Exception as error:  # whatever a template from a file makes Jinja and Python raise
            raise _refusal(f"it cannot be compiled: {_reason(error)}") from error

    def _searched_names(self, facts: TemplateFacts, budget: RenderBudget) -> Iterator[str]:
        """Vocabularies may have as many names as tokens."""
        for name in self._names.names:
            budget.tick()
            if facts.searches(name):
                yield name

    def _new_budget(self) -> RenderBudget:
        return RenderBudget(self._max_chars, self._max_seconds)

    def _run(self, template: Template, variables: dict[str, Any], mask: Mask) -> str:
        budget = self._new_budget()
        pieces, num_chars = [], 0
        try:
            with self._sandbox.use(budget, mask):
                # Not `render`: that rewrites tracebacks, which takes long for a deep one.
                for piece in template.root_render_func(template.new_context(variables)):
                    budget.tick()
                    num_chars += len(piece)
                    budget.check_chars(num_chars)
                    pieces.append(piece)
        except BudgetError as error:
            raise _refusal(f"it {error}") from error
        except Exception as error:  # `raise_exception`, and whatever else a template runs into
            raise _refusal(_reason(error)) from error
        return "".join(pieces)


def _check_arguments(
    messages: object, add_generation_prompt: bool, continue_final_message: bool, further: Mapping[str, Any]
) -> None:
    for name in _OWN_VARIABLES:
        if name in further:
            raise InvalidRequestError(f"chat_template_kwargs must not set {name}", "chat_template_kwargs")
    if not isinstance(messages, list | tuple):
        raise InvalidRequestError("messages must be a list", "messages")
    if continue_final_message and add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message needs add_generation_prompt to be false", "continue_final_message"
        )


def _hide_message(message: Message, searched_names: frozenset[str], mask: Mask) -> Message:
    """In the model's own messages a template may look for names, such as that of the end of its thoughts."""
    kept = searched_names if message["role"] == "assistant" else frozenset()
    hidden: Message = map_strings(lambda text: mask.hide(text, kept), message)
    return hidden


def _mark_end(message: Message, mark: str) -> None:
    """Puts `mark` and a space, which tells whether the template strips, behind the text of the last message."""
    content = message.get("content")
    if message["role"] != "assistant" or not content or isinstance(content, dict):
        raise InvalidRequestError(
            "continue_final_message needs an assistant message with text at the end of messages",
            "continue_final_message",
        )
    if isinstance(content, str):
        message["content"] = content + mark + " "
    else:
        content[-1]["text"] += mark + " "


def _cut_at(mark: str, rendered: str) -> str:
    if mark not in rendered:
        raise InvalidRequestError(
            "continue_final_message: the model's chat template leaves out the last message", "continue_final_message"
        )
    before, _, after = rendered.rpartition(mark)
    return before if after.startswith(" ") else before.rstrip()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested or recurs too deeply"
    return f"{error or type(error).__name__}"[:_MAX_REASON]


def _refusal(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"messages: the model's chat template refused them: {reason}", "messages")
