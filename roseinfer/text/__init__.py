"""Text ⇄ ids: `load_tokenizer` gives a `Tokenizer`, and that a `Detokenizer` per stream."""

from roseinfer.text.detokenizer import Detokenizer
from roseinfer.text.loading import load_tokenizer
from roseinfer.text.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer", "load_tokenizer"]
