"""Every cap on what one request may ask for, stated once.

The server's schemas refuse what lies outside before any work is done, `SamplingParams` and the engine's door
refuse it again, whoever made the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from roseinfer.core.errors import InvalidRequestError

Number = TypeVar("Number", int, float)

INT32 = 2**31 - 1
INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Cap(Generic[Number]):
    """A value from `least` to `most`, both included unless it `is_open` at the low end.

    `unit` is what is counted where the value itself is not the number; `source` is who says so, or why it is ours.
    """

    name: str
    least: Number
    most: Number
    source: str
    unit: str = ""
    is_open: bool = False

    def check(self, value: object, name: str = "") -> None:
        """Raises InvalidRequestError naming the field, `name` if it has another one here, and the limit."""
        name = name or self.name
        if not self._is_number(value):
            kind = "an integer" if isinstance(self.most, int) else "a number"
            raise InvalidRequestError(f"{name} must be {kind}, got {shown(value)}", name)
        if not self._holds(value):
            raise InvalidRequestError(f"{name} must be {self._range()}, got {shown(value)}", name)

    def check_count(self, count: int, name: str = "") -> None:
        """The same for a number of `unit`; the least is the schemas' matter, as absent is empty to the engine."""
        if count > self.most:
            name = name or self.name
            raise InvalidRequestError(f"{name} takes at most {self.most} {self.unit}, got {count}", name)

    def _is_number(self, value: object) -> bool:
        kinds = int if isinstance(self.most, int) else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)

    def _holds(self, value: object) -> bool:
        number: float = value  # type: ignore[assignment]  # proven by `_is_number`
        return self.least <= number <= self.most and not (self.is_open and number == self.least)  # false for a NaN

    def _range(self) -> str:
        if self.is_open:
            return f"greater than {self.least:g} and at most {self.most:g}"
        return f"between {self.least} and {self.most}"


def shown(value: object) -> str:
    """For messages: nothing large is printed, an integer of thousands of digits not even converted."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float | str | None):
        return repr(value[:80] if isinstance(value, str) else value)
    return f"a {type(value).__name__}"


# -- how much is generated ----------------------------------------------------------------------------------

MAX_TOKENS = Cap("max_tokens", 0, INT32, "int32; what fits the context is checked with the prompt at hand")
ANSWER_TOKENS = Cap("max_completion_tokens", 1, INT32, "OpenAI's and Anthropic's newer APIs score no prompts")
MIN_TOKENS = Cap("min_tokens", 0, INT32, "int32; at most max_tokens")
THINKING_TOKENS = Cap("thinking.budget_tokens", 1024, INT32, "Anthropic's")
TOOL_CALLS = Cap("max_tool_calls", 1, INT32, "int32")
CHOICES = Cap("n", 1, 16, "each is a sequence of its own")
CHOICE_INDEX = Cap("choice", 0, 2**16 - 1, "int32 in the sampler's counter")

TOKEN_ID = Cap("token id", 0, INT32, "int32; what the vocabulary has is checked where it is known")

# -- how tokens are chosen ----------------------------------------------------------------------------------

TEMPERATURE = Cap("temperature", 0.0, 2.0, "OpenAI's")
MESSAGES_TEMPERATURE = Cap("temperature", 0.0, 1.0, "Anthropic's")
TOP_P = Cap("top_p", 0.0, 1.0, "a probability, and 0 would keep no token", is_open=True)
MIN_P = Cap("min_p", 0.0, 1.0, "a probability")
TOP_K = Cap("top_k", 0, INT32, "int32; 0 is off")
OPEN_TOP_K = Cap("top_k", -1, INT32, "vLLM's, where -1 is off, too")
SEED = Cap("seed", 0, INT64, "int64")
SIGNED_SEED = Cap("seed", -INT64 - 1, INT64, "OpenAI's, int64; the sign bit does not count")
PRESENCE_PENALTY = Cap("presence_penalty", -2.0, 2.0, "OpenAI's")
FREQUENCY_PENALTY = Cap("frequency_penalty", -2.0, 2.0, "OpenAI's")
REPETITION_PENALTY = Cap("repetition_penalty", 0.01, 10.0, "logits stay finite, multiplied or divided by it")
LOGIT_BIAS = Cap("logit_bias", -100.0, 100.0, "OpenAI's; finite in float32")
BIASED_TOKENS = Cap("logit_bias", 0, 1024, "written anew for every token of the answer", "entries")
STOP_TOKEN_IDS = Cap("stop_token_ids", 0, 64, "looked through for every token of the answer", "entries")
ALL_STOP_TOKEN_IDS = Cap("stop_token_ids", 0, 2 * STOP_TOKEN_IDS.most, "the model's own and the caller's", "entries")
ALLOWED_TOKEN_IDS = Cap("allowed_token_ids", 1, 2**18, "no vocabulary is much larger", "entries")
BAD_WORDS = Cap("bad_words", 0, 64, "looked for behind every token of the answer", "entries")
BAD_WORD_CHARS = Cap("bad_words", 1, 256, "a word is no text", "characters")
BAD_WORD_SPELLINGS = Cap("bad_words", 0, 2 * BAD_WORDS.most, "with and without a space before each", "entries")
BAD_WORD_TOKENS = Cap("bad_words", 1, 64, "a word is no text", "entries")
PRIORITY = Cap("priority", -1_000_000, 1_000_000, "any range would do")
CACHE_SALT_CHARS = Cap("cache_salt", 1, 256, "hashed with every block", "characters")
TENANT_CHARS = Cap("tenant", 0, 256, "a digest", "characters")
REQUEST_ID_CHARS = Cap("request_id", 0, 256, "said again with every token", "characters")

# -- what is told of them -----------------------------------------------------------------------------------

LOGPROBS = Cap("logprobs", 0, 20, "OpenAI's top_logprobs")
PROMPT_LOGPROBS = Cap("prompt_logprobs", 0, LOGPROBS.most, "as of the answer's tokens")
PROMPT_LOGPROBS_IN_ALL = Cap("prompt_logprobs", 0, 4_000_000, "kept until the reply is written", "logprobs")

# -- where the answer ends ----------------------------------------------------------------------------------

STOP_STRINGS = Cap("stop", 0, 4, "OpenAI's", "entries")
STOP_CHARS = Cap("stop", 1, 256, "so much of the text is held back", "characters")

# -- what it must look like ---------------------------------------------------------------------------------

GRAMMAR_BYTES = Cap("grammar", 1, 64 * 1024, "parsing takes milliseconds", "bytes")
REGEX_BYTES = Cap("grammar", 1, 1024, "its automaton may be exponential in it", "bytes")
SCHEMA_DEPTH = Cap("grammar", 1, 32, "OpenAI allows 10; subschemas within subschemas", "levels")
LARK_SYMBOLS = Cap("grammar", 1, 5000, "a step of an ambiguous grammar costs up to their square", "symbols")
GBNF_BYTES = Cap("grammar", 1, 16 * 1024, "converting costs up to their number times the rules", "bytes")
GBNF_RULES = Cap("grammar", 1, 256, "converting costs up to their number times the bytes", "rules")
GRAMMAR_CHOICES = Cap("structured_outputs.choice", 1, 1024, "each is an alternative of the grammar", "entries")
GRAMMAR_SECONDS = Cap("grammar", 0.0, 2.0, "compiling one; others wait meanwhile", "seconds")

# -- prompts, messages and tools ----------------------------------------------------------------------------

PROMPTS = Cap("prompt", 1, 256, "each is a sequence of its own", "entries")
PROMPT_IDS = Cap("prompt", 1, 2**18, "no context is longer", "entries")
TOKENIZED_CHARS = Cap("prompt", 0, 2**20, "a text that fits no context; takes about a second", "characters")
DETOKENIZED_IDS = Cap("tokens", 0, 2**18, "as in a prompt", "entries")
TOOLS = Cap("tools", 0, 128, "OpenAI's", "entries")
FUNCTION_NAME_CHARS = Cap("tools", 1, 64, "OpenAI's", "characters")
METADATA = Cap("metadata", 0, 16, "OpenAI's", "entries")
METADATA_KEY_CHARS = Cap("metadata", 0, 64, "OpenAI's", "characters")
METADATA_CHARS = Cap("metadata", 0, 512, "OpenAI's", "characters")

# -- whole bodies -------------------------------------------------------------------------------------------

HEAD_BYTES = Cap("head", 0, 16 * 1024, "usual among web servers", "bytes")
BODY_BYTES = Cap("body", 0, 8 * 2**20, "the longest context as text, several times", "bytes")
JSON_DEPTH = Cap("body", 1, 64, "far below any stack's end", "levels")
JSON_CONTAINERS = Cap("body", 0, 65_536, "checking one takes microseconds", "objects and lists")
OBJECT_MEMBERS = Cap("body", 0, 4096, "no object has as many fields", "members")
LIST_ITEMS = Cap("body", 0, 2**18, "token ids", "items")
OTHER_LIST_ITEMS = Cap("body", 0, 4096, "lists of anything but token ids", "items")

CAPS: tuple[Cap[int] | Cap[float], ...] = tuple(value for value in globals().values() if isinstance(value, Cap))
