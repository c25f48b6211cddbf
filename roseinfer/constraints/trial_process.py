"""A process of its own that compiles grammars before the server does.

A grammar can make the compiler run for ever, overflow its stack or eat the memory, and none of these can be stopped
in a thread. Here they end this process only. JSON lines: settings first, then {"source", "seconds"} → {"error"}.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from roseinfer.constraints.limits import MAX_TRIAL_BYTES, NICENESS, TRIAL_STACK_BYTES, parser_limits
from roseinfer.constraints.vocabulary import build_tokenizer
from roseinfer.core.python_process import die_with_parent


def main() -> None:
    die_with_parent()
    os.nice(NICENESS)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm has to kill, also within native code
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # meant for the server; the end of the input ends this process
    with contextlib.suppress(OSError, ValueError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (MAX_TRIAL_BYTES, MAX_TRIAL_BYTES))
    threading.stack_size(TRIAL_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    tokenizer = _stand_in(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        reply = {"error": _try(tokenizer, request["source"])}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


def _try(tokenizer: LLTokenizer, source: str) -> str:
    """The compiler's complaint, or "". The first mask, whose errors depend on the vocabulary, is only run."""
    grammar = json.dumps({"grammars": [{"lark_grammar": source}]})
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    error = matcher.get_error()
    if not error:
        matcher.compute_bitmask()
    return error


def _stand_in(settings: dict[str, Any]) -> LLTokenizer:
    """The special tokens under their own ids, so that a grammar may name them, and of the others one for each byte."""
    special = {int(token_id): bytes.fromhex(name) for token_id, name in settings["special"].items()}
    free = (i for i in range(settings["num_tokens"]) if i not in special)
    tokens = [special.get(i, b"") for i in range(settings["num_tokens"])]
    for byte, token_id in zip(range(256), free, strict=False):
        tokens[token_id] = bytes([byte])
    return build_tokenizer(tokens, list(special), settings["eos_ids"])


if __name__ == "__main__":
    main()
