"""Text ⇄ ids for one model, whatever file its vocabulary came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from roseinfer.core.errors import InvalidRequestError
from roseinfer.text.chat_template import ChatTemplate
from roseinfer.text.control_names import Segment
from roseinfer.text.detokenizer import Detokenizer
from roseinfer.text.token_bytes import replace_surrogates
from roseinfer.text.vocabulary import Vocabulary


class Encoder(Protocol):
    """Text to ids and nothing around them; may be called from several threads at once."""

    def encode(self, text: str, parse_special: bool) -> list[int]: ...

    def encode_after_token(self, text: str) -> list[int]:
        """Plain text, names of special tokens included, that follows a special token."""
        ...


class Tokenizer:
    """Thread safe. Made by `load_tokenizer`.

    `prefix_ids` is what a text of this model starts with, usually BOS, and `add_prefix` whether it does so unasked;
    `strip_space` says that encoding puts a space before a text, which decoding takes away again;
    `max_token_chars` is how much of a text one token may stand for, None where nobody knows;
    `chat_template` is None for a model without one.
    """

    def __init__(
        self,
        encoder: Encoder,
        vocabulary: Vocabulary,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        pad_id: int | None,
        prefix_ids: Sequence[int],
        add_prefix: bool,
        strip_space: bool,
        max_token_chars: int | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._prefix_ids = list(prefix_ids)
        self._add_prefix = add_prefix
        self._strip_space = strip_space
        self._max_token_chars = max_token_chars
        self.chat_template = chat_template
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))  # the model's own EOS first
        self.pad_id = pad_id

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows; a model's logits may be wider."""
        return self._vocabulary.size

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """The ids of `text`. Lone surrogates count as U+FFFD.

        `add_bos`: None means as the model's tokenizer says; a BOS that the text already starts with is not
        doubled. `parse_special=False` takes the names of special tokens for the ordinary text they are.
        """
        return self._with_prefix(self._encoder.encode(replace_surrogates(text), parse_special), add_bos)

    def encode_segments(self, segments: Iterable[Segment], *, add_bos: bool | None = None) -> list[int]:
        """The ids of (text, parse_special) one after the other, as `RenderedPrompt.segments` has them.

        Each but the first is taken to begin with a special token or, where those are not parsed, to follow one.
        """
        ids: list[int] = []
        for text, parse_special in segments:
            text = replace_surrogates(text)
            if ids and not parse_special:
                ids += self._encoder.encode_after_token(text)
            else:
                ids += self._encoder.encode(text, parse_special)
        return self._with_prefix(ids, add_bos)

    def _with_prefix(self, ids: list[int], add_bos: bool | None) -> list[int]:
        wants_prefix = self._add_prefix if add_bos is None else add_bos
        if wants_prefix and ids[: len(self._prefix_ids)] != self._prefix_ids:
            return [*self._prefix_ids, *ids]
        return ids

    def min_num_tokens(self, text: str) -> int:
        """No encoding of `text` has fewer ids. Costs nothing: a hopeless prompt can be refused before `encode`."""
        return -(-len(text) // self._max_token_chars) if self._max_token_chars else 0

    def encode_prompt(self, text: str) -> list[int]:
        """The ids to generate from, never none: an empty prompt starts from BOS, or EOS where there is no BOS.

        Raises InvalidRequestError for an empty prompt if the model has neither.
        """
        ids = self.encode(text)
        if ids:
            return ids
        start = [self.bos_id] if self.bos_id is not None else list(self.eos_ids[:1])
        if not start:
            raise InvalidRequestError("prompt is empty, and this model has no token to start from", "prompt")
        return start

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.

        `continuation`: the ids follow others, so that a leading space is text, even where `encode` puts one
        before every text (Llama's SentencePiece).
        """
        text = self._vocabulary.join(ids, skip_special).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strip_space and not continuation else text

    def detokenizer(self, *, skip_special: bool = True, continuation: bool = True) -> Detokenizer:
        """A stream whose pieces join to `decode` with the same arguments. Completions are continuations."""
        strip_space = self._strip_space and not continuation
        return Detokenizer(self._vocabulary, skip_special=skip_special, strip_space=strip_space)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to the text; perhaps only a part of a UTF-8 character."""
        return self._vocabulary.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """True for tokens that `skip_special` leaves out."""
        return self._vocabulary.is_special(token_id)
