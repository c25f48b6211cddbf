"""How byte-level BPE vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

The patterns are those published in the models' own tokenizer.json files; llama.cpp's table of names says who uses
which. They run in order; each leaves its matches and what lies between them as separate pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from roseinfer.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WHITESPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_THREE_DIGITS}|{_PUNCTUATION}|{_WHITESPACE}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_DIGIT}|{_PUNCTUATION}|{_WHITESPACE}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{_DIGIT}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_WHITESPACE}"
)

_HEAD, _TAIL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_HEAD}*{_TAIL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_HEAD}+{_TAIL}*")
_CASED_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_WHITESPACE}"
_TEKKEN = rf"{_CASED_WORDS[0]}|{_CASED_WORDS[1]}|{_DIGIT}|{_CASED_REST}"
_O200K = rf"{_CASED_WORDS[0]}{_CONTRACTION}?|{_CASED_WORDS[1]}{_CONTRACTION}?|{_THREE_DIGITS}|{_CASED_REST}"

_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# DeepSeek's own list of cased letters, written as what it lacks of Unicode's.
_DEEPSEEK_LETTER = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u0560-\u0588\u10C7-\u10FF\u1C80-\u1C8A\u2D00-\u2D2D\uA790-\uAB6F"
    r"\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16E7F}\x{1D400}-\x{1D7CB}\x{1DF00}-\x{1DF2A}]]"
)
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED_CODER = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_DIGIT}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_WHITESPACE}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizerSpec:
    """`ignore_merges`: a word that is a token is that token; `add_bos`: where the file does not say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> PreTokenizer:
        """The same as a pre-tokenizer of the `tokenizers` library."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

        *patterns, last = self.patterns
        steps: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in patterns]
        if last != _GPT2:  # which the library has built in, faster than its general engine
            steps.append(Split(Regex(last), "isolated"))
        steps.append(ByteLevel(add_prefix_space=False, use_regex=last == _GPT2))
        return Sequence(steps)


_GPT2_SPEC = PreTokenizerSpec((_GPT2,))
_SINGLE_DIGITS_SPEC = PreTokenizerSpec((_DIGIT, _GPT2))
_LLAMA3_SPEC = PreTokenizerSpec((_CL100K,), ignore_merges=True, add_bos=True)
_CL100K_SPEC = PreTokenizerSpec((_CL100K,))
_QWEN2_SPEC = PreTokenizerSpec((_QWEN2,))
_O200K_SPEC = PreTokenizerSpec((_O200K,))
_DEEPSEEK_V3_SPEC = PreTokenizerSpec((_THREE_DIGITS, _CJK, _DEEPSEEK_V3))
_BLOOM_SPEC = PreTokenizerSpec((_BLOOM,))
_BAILING_SPEC = PreTokenizerSpec((_BAILING,))

_SPECS: dict[str, PreTokenizerSpec] = {
    "default": PreTokenizerSpec((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum"), _GPT2_SPEC),
    **dict.fromkeys(("exaone4", "granite-docling", "a.x-4.0", "modern-bert"), _GPT2_SPEC),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _SINGLE_DIGITS_SPEC),
    **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), _SINGLE_DIGITS_SPEC),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1"), _LLAMA3_SPEC),
    **dict.fromkeys(("pixtral", "lfm2", "midm-2.0"), _LLAMA3_SPEC),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _CL100K_SPEC),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizerSpec((_CL100K,), ignore_merges=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), _QWEN2_SPEC),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), _QWEN2_SPEC),
    "qwen35": PreTokenizerSpec((_QWEN35,)),
    "tekken": PreTokenizerSpec((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _O200K_SPEC),
    "deepseek-llm": PreTokenizerSpec(
        (
            r"[\r\n]",
            rf"\s?{_DEEPSEEK_LETTER}+",
            "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizerSpec((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGIT)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK_V3_SPEC),
    "falcon": PreTokenizerSpec((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), _BLOOM_SPEC),
    "viking": PreTokenizerSpec((_BLOOM, _DIGIT)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING_SPEC),
    "seed-coder": PreTokenizerSpec((_SEED_CODER,)),
}


def find_pre_tokenizer(name: str) -> PreTokenizerSpec:
    """Raises TokenizerError that names a pre-tokenizer we do not know: a wrong guess would spoil every prompt."""
    try:
        return _SPECS[name]
    except KeyError:
        raise TokenizerError(
            f"the GGUF vocabulary names the pre-tokenizer {name!r} (tokenizer.ggml.pre), which roseinfer does not know"
        ) from None
