"""Names by which end-of-generation tokens are known: files often name one of several, or none."""

from __future__ import annotations

from collections.abc import Mapping

# The list that llama.cpp keeps, less its fill-in-the-middle tokens, which separate files but end nothing.
END_OF_GENERATION = (
    "<|eot_id|>",
    "<|eot|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)


def find_end_ids(special_tokens: Mapping[str, int]) -> list[int]:
    """Ids of the special tokens that end a generation, in the order of `END_OF_GENERATION`."""
    names = [name for name in END_OF_GENERATION if name in special_tokens]
    if {"<|return|>", "<|call|>"} <= set(names) or {"<|calls|>", "<|flush|>"} <= set(names):
        names = [name for name in names if name != "<|end|>"]  # there it ends a message, and another follows
    return [special_tokens[name] for name in names]
